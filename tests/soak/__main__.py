"""``make soak``: random control sequences and clients over HTTP for as long as you like, summed up as JSON.

Exits with 1 if anything was violated. Each violation comes with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
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
from tests.soak.machine import run_machine
from tests.soak.ranked import run_ranked

_LOAD_SHARE = 0.15  # of the time, for clients and operators over HTTP
_HTTP_TESTS = ("tests/server/test_load.py", "tests/server/test_schema.py")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="default: %(default)g")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--ranks", type=int, default=1, help="only control operations, on so many ranks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.ranks > 1:
        ranked = run_ranked(options.ranks, options.seconds, options.seed)
        print(json.dumps({**_provenance(options.seed), "ranked": dataclasses.asdict(ranked)}, indent=2))
        return int(bool(ranked.violations))
    logging.disable(logging.CRITICAL)  # injected faults are logged as they should be, a million times
    control = run_machine(options.seconds * (1 - _LOAD_SHARE), options.seed)
    logging.disable(logging.NOTSET)
    print(json.dumps(dataclasses.asdict(control)), file=sys.stderr, flush=True)  # whatever comes after
    http = _over_http(options.seconds * _LOAD_SHARE, options.seed)
    print(
        json.dumps(
            {
                **_provenance(options.seed),
                "control": dataclasses.asdict(control),
                "http": http,
            },
            indent=2,
        )
    )
    return int(bool(control.violations or http["violations"] or not http["tests"]))


def _provenance(seed: int) -> dict[str, object]:
    return {
        "seed": seed,
        "devicekit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _over_http(seconds: float, seed: int) -> dict[str, object]:
    """What the tests over HTTP say that they did, and which of them failed."""
    sizes = {
        "LOAD_SECONDS": str(max(5.0, seconds)),
        "LOAD_SEED": str(seed),
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
