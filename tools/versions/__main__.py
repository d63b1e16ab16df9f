"""``python -m tools.versions``: run columns, keep what they gave, and write the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.environments import ROOT
from tools.versions.columns import COLUMNS
from tools.versions.page import page
from tools.versions.record import Run, read, write
from tools.versions.running import run

_RESULTS = ROOT / "docs" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the columns; 1 if something did not pass."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.versions",
        description="Runs the suite on every combination of versions that is claimed.",
    )
    parser.add_argument(
        "--column",
        action="append",
        choices=[one.name for one in COLUMNS],
        help="this one; again for more (default: all)",
    )
    parser.add_argument(
        "--form", choices=["short", "long"], default="long", help="how much of the suite (default: long)"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=ROOT / ".venv-versions",
        help="where they are made (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=_RESULTS,
        help="folder of versions.json and versions.md (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of pytest (default: %(default)s)")
    parser.add_argument(
        "--page-only", action="store_true", help="write the page from what is kept, and run nothing"
    )
    options = parser.parse_args(arguments)
    wanted = (
        []
        if options.page_only
        else [one for one in COLUMNS if one.name in (options.column or [c.name for c in COLUMNS])]
    )
    ran: list[Run] = []
    for column in wanted:
        print(f"{column.name}: Python {column.python}, {column.why}", flush=True)
        ran.append(run(column, options.environments, form=options.form, workers=options.workers))
        _keep(options.results, ran[-1:])
        print(ran[-1].blocked or ran[-1].counts, flush=True)
    _keep(options.results, [])
    return int(any(one.red for one in ran))


def _keep(results: Path, ran: Sequence[Run]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    write(results / "versions.json", [*read(results / "versions.json"), *ran])
    (results / "versions.md").write_text(page(COLUMNS, read(results / "versions.json")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
