"""docs/results/versions.md: a row for each column that is claimed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tools.versions.columns import SHORT, Column
from tools.versions.record import Run

_SHOWN = ("torch", "transformers", "numpy", "pluggy", "pytest")
_TOP = f"""# What was run on which versions

Made by `make versions` from [versions.json](versions.json): each column of `tools/versions/columns.py` in an
environment of its own. The short form is the part of the suite in which another library's version shows; the long
form is all of it. `oldest` takes every direct requirement at its lower bound, as a resolver's lowest-direct mode
does. What did not pass is run a second time, alone; only what fails again counts as failed.

Short form: {", ".join(f"`{one}`" for one in SHORT)}.

| column | why | form | Python | {" | ".join(_SHOWN)} | passed | failed | skipped | minutes | date | revision |
|---|---|---|---|{"---|" * len(_SHOWN)}---|---|---|---|---|---|
"""


def page(columns: Sequence[Column], runs: Sequence[Run]) -> str:
    """The page: every column, also those that never ran."""
    rows = [row for column in columns for row in _rows(column, runs)]
    wrong = [line for run in runs for line in _failures(run)]
    notes = [f"- {run.column}, {run.form}: {run.note}" for run in runs if run.note]
    left_out = [line for run in runs for line in _left_out(run)]
    return (
        _TOP
        + "\n".join(rows)
        + "\n"
        + _section("Left out", left_out)
        + _section("Notes", notes)
        + _section("Not passed", wrong)
    )


def _section(title: str, lines: Sequence[str]) -> str:
    return f"\n## {title}\n\n" + "\n".join(lines) + "\n" if lines else ""


def _rows(column: Column, runs: Sequence[Run]) -> Iterator[str]:
    own = [one for one in runs if one.column == column.name]
    for run in own:
        if run.blocked is None:
            yield _line(column, _ran(run))
    if not any(one.blocked is None for one in own):
        reason = own[-1].blocked if own else None
        pins = [column.pins.get(name, "oldest" if column.lowest else "newest") for name in _SHOWN]
        said = "not run" if reason is None else f"not run: {reason}"
        yield _line(column, [said, column.python, *pins, "", "", "", "", "", ""])


def _ran(run: Run) -> list[str]:
    bad = run.counts.failed + run.counts.errors
    return [
        run.form,
        run.python,
        *(run.packages.get(name, "absent") for name in _SHOWN),
        str(run.counts.passed),
        f"**{bad}**" if run.red else str(bad),
        str(run.counts.skipped),
        f"{run.seconds / 60:.0f}",
        run.started,
        run.revision,
    ]


def _line(column: Column, cells: Sequence[str]) -> str:
    return f"| {column.name} | {column.why} | {' | '.join(cells)} |"


def _failures(run: Run) -> Iterator[str]:
    yield from (f"- {run.column}, {run.form}: `{name}`" for name in run.counts.failures)


def _left_out(run: Run) -> Iterator[str]:
    for reason, files in sorted(run.counts.left_out.items()):
        listed = ", ".join(f"{file} {count}" for file, count in sorted(files.items()))
        yield f"- {run.column}, {run.form}, {sum(files.values())} because {reason}: {listed}"
