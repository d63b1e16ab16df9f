"""``python -m devicekit.devtools.bench SUITE... [--json FILE]``: run benchmark suites and print their table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from devicekit.devtools.bench import dispatch, observe, pools, releases, residency, scheduler
from devicekit.devtools.bench.harness import as_json, as_table

SUITES = {
    "dispatch": dispatch.run,
    "observe": observe.run,
    "pools": pools.run,
    "releases": releases.run,
    "residency": residency.run,
    "scheduler": scheduler.run,
}


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 when a row misses its target."""
    parser = argparse.ArgumentParser(prog="python -m devicekit.devtools.bench", description=__doc__)
    parser.add_argument("suites", nargs="+", choices=list(SUITES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE as well")
    chosen = parser.parse_args(arguments)
    rows = [row for suite in chosen.suites for row in SUITES[suite]()]
    print(as_table(rows))
    if chosen.json is not None:
        chosen.json.write_text(as_json(rows), encoding="utf-8")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
