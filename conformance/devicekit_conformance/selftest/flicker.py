"""Judges one backend again and again, and tells every verdict that is not what it was the first time.

``python -m devicekit_conformance.selftest.flicker --backend cpu --runs 20``, on a machine that is busy with other
things. Each run is the command as users run it, with another order of hashes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from devicekit_conformance.rerun import differences
from devicekit_conformance.verify import read_report

_PROFILES = ("core", "memory", "streams")


def main(argv: Sequence[str] | None = None) -> int:
    """Print what each run found otherwise; 0 when none did."""
    parser = argparse.ArgumentParser(prog="devicekit_conformance.selftest.flicker", description=__doc__)
    parser.add_argument("--backend", required=True, metavar="ADDRESS")
    parser.add_argument("--probe", metavar="ADDRESS")
    parser.add_argument("--profile", nargs="+", default=list(_PROFILES))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first run's hashes; of each next one more"
    )
    arguments = parser.parse_args(argv)
    first, changed = None, 0
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        started, busy = time.monotonic(), os.getloadavg()[0]
        report = _run(arguments, seed)
        told: list[str] = [] if first is None else differences(first, report)
        first, changed = first or report, changed + bool(told)
        verdict, seconds = report["verdict"], time.monotonic() - started
        print(f"seed {seed}: {verdict}, {seconds:.0f} s at a load of {busy:.1f}", flush=True)
        for line in told:
            print(f"  {line}", flush=True)
    print(f"{arguments.runs} runs, {changed} of which differed from the first")
    return 1 if changed else 0


def _run(arguments: argparse.Namespace, seed: int) -> Mapping[str, object]:
    command = [sys.executable, "-m", "devicekit.cli", "conformance", "run", "--backend", arguments.backend]
    for profile in arguments.profile:
        command += ["--profile", profile]
    if arguments.probe:
        command += ["--probe", arguments.probe]
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run(
            [*command, "--quiet", "--report", folder],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=False,
        )
        path = Path(folder, "report.json")
        if not path.is_file():
            raise SystemExit(f"There is no report of the run with seed {seed}:\n{told.stdout}{told.stderr}")
        return read_report(path)


if __name__ == "__main__":
    sys.exit(main())
