"""The kill matrix as a page: what was caught on first sight and in the end, by operator and by hook."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["page"]

Row = Mapping[str, Any]

_HEAD = """# Kill matrix

Faulty backends derived from the contract: each operator of the fault model at every place that it can apply
to. Written by `make kill-matrix`. The hand-written faults are in [WRITTEN_FAULTS.md](WRITTEN_FAULTS.md).

An operator is *held out* by a hash of its name: requirements are written against the others, and the catch rate on
the held-out ones was measured before their survivors were looked at. That is *first sight*.
"""


# What nobody can see from outside, or what the contract leaves open.
_UNDECIDED = {
    "a count of page-locked memory of the host that wraps at 2 or 4 GiB": "the suite locks no such amount",
    "a native handle that is another number than the stream's, and as good a name for it": "the value is opaque; "
    "it is compared with torch's own where torch tells it",
    "a clock, a power or an index among all devices of the machine that is another, and plausible": "nobody else "
    "counts it where torch has no function for it",
    "an 8-bit float that is listed and not there": "torch has no plain product for it, and other roads are the "
    "vendors' own",
    "lazy execution that is claimed by a device that runs all at once": "work that ends though nobody sent it off "
    "is what a lazy device may do",
    "recording of allocations that begins on every device": "some vendors' recorders do that, which is allowed",
}


def page(rows: Sequence[Row], derived: int, first_sight: Mapping[str, str], note: str = "") -> str:
    """The page for the results of a run.

    Args:
        rows: one for each faulty backend that was judged.
        derived: how many there are in all.
        first_sight: what was measured, and the figure.
        note: which part was judged, and how.
    """
    caught = sum(_caught(row) for row in rows)
    lines = [
        _HEAD,
        f"{derived} derived faults; {len(rows)} judged in this run, {caught} caught ({_rate(rows)}),",
        f"in {sum(row['seconds'] for row in rows):.0f} seconds of processor time.",
        *textwrap.wrap(note, 115),
        "",
        "| first sight | caught |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in first_sight.items()),
        "",
        *_table("family", rows, "family"),
        *_table("operator", rows, "operator"),
        *_table("hook", rows, "hook"),
        "## Survivors of this run",
        "",
        *(
            f"- `{row['name']}`" + (f": {row['message']}" if row["message"] else "")
            for row in rows
            if not _caught(row)
        ),
    ]
    if all(map(_caught, rows)):
        lines.append("None.")
    lines += ["", "## Not decided", "", "| fault | why |", "|---|---|"]
    lines += [f"| {what} | {why} |" for what, why in _UNDECIDED.items()]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, rows: Iterable[Row], key: str) -> list[str]:
    counts, caught, held = Counter[str](), Counter[str](), set[str]()
    for row in rows:
        name = row[key] or "the whole backend"
        counts[name] += 1
        caught[name] += _caught(row)
        if row["held_out"] and key == "operator":
            held.add(name)
    lines = [f"## By {title}", "", f"| {title} | caught | of |", "|---|---|---|"]
    for name, count in sorted(counts.items()):
        mark = " (held out)" if name in held else ""
        lines.append(
            f"| {name.replace('_', ' ') if key == 'operator' else name}{mark} | {caught[name]} | {count} |"
        )
    return [*lines, ""]


def _caught(row: Row) -> bool:
    return bool(row["status"] == "fail")


def _rate(rows: Sequence[Row]) -> str:
    return f"{100 * sum(map(_caught, rows)) / max(1, len(rows)):.1f} %"
