"""docs/results/stranger.md: what was seen with each extra, the last time it was installed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tools.stranger.extras import BASE

_SCHEMA = "devicekit-stranger/1"
_COLUMNS = (
    *("extra", "result", "works beyond the base", "names an extra", "took", "processor time"),
    *("Python", "torch", "date", "revision"),
)
_TOP = f"""# What a stranger gets with each extra

Made by `make stranger` from [stranger.json](stranger.json): the built wheels, each extra alone in a clean
environment, with `devicekit-cpu` beside it. Every command and every example of the README and of
[parts](../parts.md) is run there: it works, or it says which extra it needs; then devicekit is uninstalled again.
`types` is a strictly typed program, checked against the installed packages.

| {" | ".join(_COLUMNS)} |
|{"---|" * len(_COLUMNS)}
"""


@dataclass(slots=True)
class Visit:
    """What was seen with one extra; names are those of commands and programs."""

    extra: str
    works: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # with the name of an extra, unless it is in `wrong`
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    python: str = ""
    torch: str = ""
    started: str = ""
    revision: str = ""


def read(file: Path) -> list[Visit]:
    """The visits that are kept; none if there is no file.

    Raises:
        ValueError: the file is something else.
    """
    if not file.is_file():
        return []
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("schema") != _SCHEMA:
        raise ValueError(f"{file} is no record of visits: its schema should be {_SCHEMA!r}")
    return [Visit(**one) for one in data["visits"]]


def write(file: Path, visits: Iterable[Visit]) -> list[Visit]:
    """Keep them, the last one of each extra, and write the page beside them."""
    kept = list({one.extra: one for one in visits}.values())
    text = json.dumps({"schema": _SCHEMA, "visits": [asdict(one) for one in kept]}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(page(kept), encoding="utf-8")
    return kept


def page(visits: Sequence[Visit]) -> str:
    """A row for each visit, and everything wrong."""
    rows = "".join(map(_row, visits))
    wrong = [f"- {one.extra}: {text}" for one in visits for text in one.wrong]
    return _TOP + rows + ("\n## Wrong\n\n" + "\n".join(wrong) + "\n" if wrong else "")


def _row(visit: Visit) -> str:
    more = [one for one in visit.works if one not in BASE]
    cells = [
        visit.extra,
        "**wrong**" if visit.wrong else "sound",
        ", ".join(more) or "nothing",
        str(len(visit.refused)),
        f"{visit.seconds:.0f} s",
        f"{visit.cpu_seconds:.0f} s",
        visit.python,
        visit.torch,
        visit.started,
        visit.revision,
    ]
    return f"| {' | '.join(cells)} |\n"
