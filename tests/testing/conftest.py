"""A fresh simulated machine, or a fresh interpreter, for each test that asks for one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from devicekit.testing import Simulator
from tests.simulated import requested


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A machine of the default configuration, or of the one that the test is parametrised with."""
    with requested(request) as simulator:
        yield simulator


@pytest.fixture
def run() -> Callable[[str], str]:
    """Runs code in an interpreter of its own, and returns what it printed; an error there is one here."""

    def run(code: str) -> str:
        # Newer Pythons warn of every fork beside torch's threads; whatever else they warn of is an error.
        flags = ["-W", "error", "-W", "ignore::DeprecationWarning"]
        command = [sys.executable, *flags, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
