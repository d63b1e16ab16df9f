"""``devicekit baseline``: keep what runs cost, and tell when a later one costs more."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from devicekit.contract.text import counted
from devicekit.observe.baseline import ENOUGH_RUNS, Baseline, compare
from devicekit.observe.run import Run
from devicekit.observe.tolerances import (
    FILE_VARIABLE,
    VARIABLE,
    parse_tolerances,
    read_tolerances,
    tolerances_from,
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit baseline",
        description="Record what runs cost and compare later ones. Runs are files that Run.write() writes.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    record = verbs.add_parser("record", help="make a baseline of runs of the same thing on the same machine")
    record.add_argument("runs", type=Path, nargs="+", help=f"runs; {ENOUGH_RUNS} or more where times count")
    record.add_argument("-o", "--output", type=Path, required=True, help="the baseline to write")
    against = verbs.add_parser("compare", help="compare a run; exit status 1 if a metric exceeds its limit")
    against.add_argument("baseline", type=Path, help="the baseline, as record wrote it")
    against.add_argument("run", type=Path, help="the run to judge, as Run.write() wrote it")
    example = "step=0.3+20ms,DecodingStage=0.9+250ms"
    against.add_argument("--tolerances", default="", help=f"such as {example}; default: what {VARIABLE} says")
    against.add_argument(
        "--tolerances-file",
        type=Path,
        metavar="FILE",
        help=f"TOML, table [tolerances]; default: what {FILE_VARIABLE} names",
    )
    against.add_argument("--json", action="store_true", help="the report as JSON")
    options = parser.parse_args(arguments)
    if options.verb == "record":
        baseline = Baseline.from_runs([Run.read(path) for path in options.runs])
        baseline.write(options.output)
        print(
            f"{counted(len(baseline.metrics), 'metric')} of {counted(baseline.runs, 'run')} in {options.output}"
        )
        return 0
    tolerances = {
        **tolerances_from(os.environ),
        **(read_tolerances(options.tolerances_file) if options.tolerances_file else {}),
        **parse_tolerances(options.tolerances),
    }
    report = compare(Baseline.read(options.baseline), Run.read(options.run), tolerances)
    print(report.as_json() if options.json else report)
    return report.exit_status
