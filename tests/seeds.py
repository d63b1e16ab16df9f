"""Chance for tests that draw their cases while they are collected."""

from __future__ import annotations

import os
import random

_USUAL = 1


def drawn_seed(variable: str) -> int:
    """The seed that a variable gives; by chance where ``DRAW`` is set, as nightly; else always the same.

    A change must not be held up by what another one broke: `make test` repeats itself, `make thorough` draws.
    """
    given = os.environ.get(variable)
    if given is not None:
        return int(given)
    if not os.environ.get("DRAW"):
        return _USUAL
    # pytest-xdist demands that its workers collect the same tests.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    return random.Random(run).randrange(1 << 32) if run else random.SystemRandom().randrange(1 << 32)
