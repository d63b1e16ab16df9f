"""``make soak``: random control sequences and clients over HTTP for as long as you like, summed up as JSON.

Exits with 1 if anything was violated. Each violation comes with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import platform
import random
import sys

import pytest
import torch

from devicekit import __version__
from tests.soak.machine import run_machine

_LOAD_SHARE = 0.15  # of the time, for clients and operators over HTTP
_HTTP_TESTS = ("tests/server/test_load.py", "tests/server/test_schema.py")


class _Figures:
    """What tests say that they did, and whether they passed."""

    def __init__(self) -> None:
        self.figures: dict[str, object] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid}: {report.longreprtext[-500:]}")
        if report.when == "call":
            self.figures |= {str(name): value for name, value in report.user_properties}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="default: %(default)g")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # injected faults are logged as they should be, a million times
    control = run_machine(options.seconds * (1 - _LOAD_SHARE), options.seed)
    logging.disable(logging.NOTSET)
    print(json.dumps(dataclasses.asdict(control)), file=sys.stderr, flush=True)  # whatever comes after
    http, status = _over_http(options.seconds * _LOAD_SHARE, options.seed)
    print(
        json.dumps(
            {
                "seed": options.seed,
                "devicekit": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "control": dataclasses.asdict(control),
                "http": {**http.figures, "violations": http.failed},
            },
            indent=2,
        )
    )
    return int(bool(control.violations or http.failed or status))


def _over_http(seconds: float, seed: int) -> tuple[_Figures, int]:
    os.environ |= {
        "LOAD_SECONDS": str(max(5.0, seconds)),
        "LOAD_SEED": str(seed),
        "SCHEMA_EXAMPLES": str(max(10, int(seconds / 2))),
    }
    figures = _Figures()
    # Its plugins are imported already, by the machine: pytest warns that it comes too late to rewrite them.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    with contextlib.redirect_stdout(sys.stderr):  # the summary is alone on the standard output
        code = pytest.main(["-q", "-p", "no:cacheprovider", *quiet, *_HTTP_TESTS], plugins=[figures])
    return figures, int(code)


if __name__ == "__main__":
    sys.exit(main())
