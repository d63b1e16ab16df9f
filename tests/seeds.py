"""Chance for tests that draw their cases while they are collected."""

from __future__ import annotations

import os
import random


def drawn_seed(variable: str) -> int:
    """The seed that an environment variable gives, or one by chance: the same in every process of a test run."""
    given = os.environ.get(variable)
    if given is not None:
        return int(given)
    # pytest-xdist demands that its workers collect the same tests.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    return random.Random(run).randrange(1 << 32) if run else random.SystemRandom().randrange(1 << 32)
