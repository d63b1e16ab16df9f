"""What a run of benchmarks says: a table to read, JSON to compare, and a page with its growth curves."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version

from bench.harness import Row, Yardstick

_HEADS = ("case", "value", "yardsticks", "peer", "its value", "better", "target", "met")
_BAR = 40  # characters
_HEADER = """\
# Benchmarks of the bookkeeping

{date}; Python {python}, torch {torch}, numpy {numpy}, {cores} cores of an {processor} machine.

```bash
python -m bench {suites}
```

Times are medians of CPU time, with torch on one thread. Each is also given in yardsticks, simple operations timed
in turns with it, because those compare between machines. Peers are timed in turns with ours in the same process
(`make bench-peers` writes [bench-peers](bench-peers.md)); one that is not installed has no row.
`>= 4x`: so many times better than the peer; `<= 1.5 x`: the value may be no more.

Yardsticks here: {yardsticks}.
"""


def as_table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    cells = [_HEADS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def yardsticks() -> str:
    """What the yardsticks take on this machine."""
    return ", ".join(f"{stick.title} {stick.here_us:.3f} us" for stick in Yardstick)


def as_curves(rows: list[Row]) -> str:
    """Every growth curve among the rows, as bars of its yardsticks; empty when there is none.

    Bars are logarithmic: one that is flat stays as long, one that grows with its size grows by equal steps.
    """
    curves: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.curve is not None and row.at is not None and row.multiple is not None:
            curves.setdefault(row.curve, {})[row.at] = row
    return "\n\n".join(_curve(title, points) for title, points in curves.items())


def as_json(rows: list[Row]) -> str:
    """The rows and the yardsticks of this run, as a JSON document."""
    return json.dumps(
        {
            **_machine(),
            "yardsticks_us": {stick.title: stick.here_us for stick in Yardstick},
            "rows": [asdict(row) | {"met": row.met} for row in rows],
        },
        indent=2,
    )


def as_page(suites: Mapping[str, list[Row]]) -> str:
    """A Markdown page to commit: each suite's table, then the growth curves."""
    rows = [row for found in suites.values() for row in found]
    missed = [row.case for row in rows if row.met is False]
    asked = sum(row.met is not None for row in rows)
    lines = [
        _HEADER.format(
            date=datetime.date.today(), suites=" ".join(suites), yardsticks=yardsticks(), **_machine()
        ),
        f"{asked - len(missed)} of {asked} targets are met."
        + "".join(f"\n- missed: {case}" for case in missed),
    ]
    for name, found in suites.items():
        lines += ["", f"## {name}", "", "```", as_table(found), "```"]
        if said := dict.fromkeys(line for row in found for line in (row.says or "").splitlines()):
            lines += ["", *(f"- {one}" for one in said)]
    curves = as_curves(rows)
    if curves:
        lines += ["", "## Growth", "", "Yardsticks; bars are logarithmic.", "", "```", curves, "```"]
    return "\n".join(lines) + "\n"


def _machine() -> dict[str, str | int | None]:
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def _curve(title: str, points: Mapping[int, Row]) -> str:
    multiples = {at: row.multiple or 0.0 for at, row in sorted(points.items())}
    floor = min(multiples.values()) / 2
    span = max(math.log(max(multiples.values()) / floor), math.log(100))
    width = max(len(f"{at:,}") for at in multiples)
    lines = [title]
    for at, multiple in multiples.items():
        bar = "#" * max(1, round(_BAR * math.log(multiple / floor) / span))
        lines.append(f"  {at:>{width},}  {multiple:8.3g}  {bar}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    limit = "<=" if row.advantage is None else ">="
    suffix = "x" if row.advantage is not None else f" {row.unit}"
    return (
        row.case,
        f"{row.value:.3g} {row.unit}" if row.value < 1000 else f"{row.value:.0f} {row.unit}",
        "" if row.multiple is None else f"{row.multiple:.3g}",
        row.peer or "",
        "" if row.peer_us is None else f"{row.peer_us:.3g} us",
        "" if row.advantage is None else f"{row.advantage:.3g}x",
        "" if row.target is None else f"{limit} {row.target:g}{suffix}",
        {None: "", True: "yes", False: "NO"}[row.met],
    )
