"""``devicekit list``: what is installed, read from manifests alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import cast

from devicekit.contract.versions import range_text
from devicekit.registry.availability import availability
from devicekit.registry.candidates import Candidate
from devicekit.registry.discovery import discover


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit list",
        description="List the installed backends, and which of them can be used here: yes, no, or maybe, where "
        "only the backend itself can tell (devicekit info --device NAME). Imports neither torch nor a plugin: a "
        "broken SDK does no harm.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    options = parser.parse_args(arguments)
    rows = [_row(candidate) for candidate in discover()]
    if options.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("No backend is installed. Try: pip install devicekit-cpu")
    else:
        _print_table(rows)
    return 0


_Row = dict[str, str | bool | None]
_HERE = {True: "yes", False: "no", None: "maybe"}


def _row(candidate: Candidate) -> _Row:
    manifest = candidate.manifest
    here = availability(candidate)
    return {
        "name": candidate.name,
        "distribution": candidate.distribution,
        "version": candidate.version,
        "device_type": manifest.device_type if manifest else None,
        "contract": range_text(manifest.contract) if manifest else None,
        "here": here.usable,
        "reason": here.reason,
        "problem": str(candidate.error) if candidate.error else None,
    }


def _print_table(rows: list[_Row]) -> None:
    heads = ("name", "distribution", "version", "device_type", "contract")
    cells = [[*(head.replace("_", " ") for head in heads), "usable here"]]
    for row in rows:
        here = f"{_HERE[cast('bool | None', row['here'])]}: {row['reason']}"
        cells.append([*(str(row[head] or "?") for head in heads), here])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line, one in zip(cells, (None, *rows), strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if one is not None and one["problem"]:
            print(f"    {one['problem']}")
