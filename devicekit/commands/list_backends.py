"""``devicekit list``: what is installed, read from manifests alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from devicekit.registry.candidates import Candidate
from devicekit.registry.discovery import discover


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit list",
        description="List the installed backends. Imports neither torch nor a plugin: a broken SDK does no harm.",
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


def _row(candidate: Candidate) -> dict[str, str | None]:
    manifest = candidate.manifest
    return {
        "name": candidate.name,
        "distribution": candidate.distribution,
        "version": candidate.version,
        "device_type": manifest.device_type if manifest else None,
        "contract": str(manifest.contract) if manifest else None,
        "problem": str(candidate.error) if candidate.error else None,
    }


def _print_table(rows: list[dict[str, str | None]]) -> None:
    heads = ("name", "distribution", "version", "device_type", "contract")
    cells = [[head.replace("_", " ") for head in heads]]
    cells += [[row[head] or "?" for head in heads] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    for line, row in zip(cells, (None, *rows), strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if row is not None and row["problem"]:
            print(f"    {row['problem']}")
