"""What a run gave, as it is kept in docs/results/versions.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

_SCHEMA = "devicekit-versions/1"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tests ended how, and the names of those that did not pass."""

    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    failures: Sequence[str] = ()
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by reason and file

    @classmethod
    def of(cls, junit: Path) -> Counts:
        """Read pytest's own report."""
        passed = failed = errors = skipped = 0
        names: list[str] = []
        left_out: dict[str, dict[str, int]] = {}
        for case in ElementTree.parse(junit).iter("testcase"):  # written by pytest a moment ago
            ends = {child.tag for child in case}
            for child in case.iter("skipped"):
                files = left_out.setdefault(child.get("message", "no reason"), {})
                file = str(case.get("classname"))
                files[file] = files.get(file, 0) + 1
            if ends & {"failure", "error"}:
                names.append(f"{case.get('classname')}::{case.get('name')}")
            failed += "failure" in ends
            errors += "error" in ends
            skipped += "skipped" in ends
            passed += not ends & {"failure", "error", "skipped"}
        return cls(passed, failed, errors, skipped, tuple(names), left_out)


@dataclass(frozen=True, slots=True)
class Run:
    """One column in one form, the last time it was tried."""

    column: str
    form: str
    started: str
    revision: str
    python: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    blocked: str | None = None  # why it could not be run here
    note: str = ""  # what a reader should know of this run

    @property
    def red(self) -> bool:
        """It ran, and something did not pass."""
        return self.blocked is None and bool(
            self.counts.failed + self.counts.errors or not self.counts.passed
        )


def read(file: Path) -> list[Run]:
    """The runs that are kept; none if there is no file.

    Raises:
        ValueError: the file is something else.
    """
    if not file.is_file():
        return []
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("schema") != _SCHEMA:
        raise ValueError(f"{file} is no record of versions: its schema should be {_SCHEMA!r}")
    return [Run(**{**one, "counts": Counts(**one["counts"])}) for one in data["runs"]]


def write(file: Path, runs: Iterable[Run]) -> None:
    """Keep them, one for each column and form: the last wins, but what ran stays where nothing ran later."""
    kept: dict[tuple[str, str], Run] = {}
    for one in runs:
        before = kept.get((one.column, one.form))
        if before is None or one.blocked is None or before.blocked is not None:
            kept[one.column, one.form] = one
    text = json.dumps({"schema": _SCHEMA, "runs": [asdict(one) for one in kept.values()]}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
