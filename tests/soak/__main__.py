"""``make soak``: random operators, faults, pools and clients for as long as you like, summed up as JSON.

Exits with 1 if anything was violated. Each violation comes with the command that makes it happen again.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import torch

from devicekit import __version__
from tests.soak.machine import LENGTH, run
from tests.soak.pools import OPERATIONS, soak_pools
from tests.soak.ranked import run_ranked
from tests.soak.split import run_split
from tests.soak.workers import HANGING, Goal, soak

_LOAD_SHARE = 0.15  # of the time, for clients and operators over HTTP
_HTTP_TESTS = ("tests/server/test_load.py", "tests/server/test_schema.py")


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    if options.run is not None:
        return _once(options.run, options.only)
    report = _provenance(options.seed)
    if options.tensor_parallel > 1:
        split = run_split(options.tensor_parallel, options.seconds or 3600.0, options.seed)
        print(json.dumps({**report, "split": dataclasses.asdict(split)}, indent=2))
        return int(bool(split.violations))
    if options.ranks > 1:
        ranked = run_ranked(options.ranks, options.seconds or 3600.0, options.seed)
        print(json.dumps({**report, "ranked": dataclasses.asdict(ranked)}, indent=2))
        return int(bool(ranked.violations))
    violated = False
    if "control" in options.parts:
        seconds = options.seconds
        if seconds is not None and "http" in options.parts:
            seconds *= 1 - _LOAD_SHARE
        control = soak(Goal(seconds, options.steps), options.seed, options.workers)
        report["control"] = control.as_dict()
        violated |= bool(control.violations)
    if "pools" in options.parts:
        report["pools"] = pools = soak_pools(options.operations, options.seed)
        violated |= any("violation" in one for one in pools.values())
    if "http" in options.parts:
        report["http"] = http = _over_http(
            (options.seconds or 300.0) * _LOAD_SHARE, options.requests, options.seed
        )
        violated |= bool(http["violations"] or not http["tests"])
    print(json.dumps(report, indent=2))
    return int(violated)


def _provenance(seed: int) -> dict[str, object]:
    return {
        "seed": seed,
        "devicekit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, help="of control runs (3600; with --steps, no limit)")
    parser.add_argument("--steps", type=int, help="control steps after which they end")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--ranks", type=int, default=1, help="only control operations, on so many ranks")
    parser.add_argument(
        "--tensor-parallel", type=int, default=1, help="the same, of one real model that so many ranks hold"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes for the control runs (1)")
    parser.add_argument("--operations", type=int, default=OPERATIONS, help="on each pool (%(default)s)")
    parser.add_argument("--requests", type=int, default=0, help="over HTTP, however long they take")
    parser.add_argument("--parts", default="control,pools,http", help="which of them (%(default)s)")
    parser.add_argument(
        "--run", type=int, metavar="SEED", help="make one control run again, and nothing else"
    )
    parser.add_argument("--only", help="of that run, only these things: 3,17,40")
    options = parser.parse_args()
    if options.seconds is None and options.steps is None:
        options.seconds = 3600.0
    options.parts = options.parts.split(",")
    return options


def _once(seed: int, only: str | None) -> int:
    """One control run; a violation comes as an exception."""
    faulthandler.dump_traceback_later(HANGING, exit=True)
    chosen = range(LENGTH) if only is None else {int(one) for one in only.split(",") if one != "none"}
    counts = run(seed, chosen)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"seed": seed, "control_steps": counts.control_steps, "seen": counts.seen}))
    return 0


def _over_http(seconds: float, requests: int, seed: int) -> dict[str, object]:
    """What the tests over HTTP say that they did, and which of them failed."""
    sizes = {
        "LOAD_SECONDS": str(max(5.0, seconds)),
        "LOAD_REQUESTS": str(requests),
        "LOAD_SEED": str(seed),
        "DRAW": "1",
        "SCHEMA_EXAMPLES": str(max(10, int(seconds / 2))),
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_family=xunit1",
            "-o",
            "timeout=0",
        ]
        # The summary is alone on the standard output.
        subprocess.run(
            [*command, f"--junitxml={report}", *_HTTP_TESTS],
            stdout=sys.stderr,
            env={**os.environ, **sizes},
            check=False,
        )
        cases = [*ElementTree.parse(report).iter("testcase")]
    figures = {
        one.attrib["name"]: json.loads(one.attrib["value"]) for case in cases for one in case.iter("property")
    }
    failed = [
        f"{case.attrib['name']}: {one.attrib.get('message', '')[:500]}"
        for case in cases
        for one in (*case.iter("failure"), *case.iter("error"))
    ]
    return {**figures, "tests": len(cases), "violations": failed}


if __name__ == "__main__":
    sys.exit(main())
