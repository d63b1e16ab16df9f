"""How slow the machine is right now, so that time limits mean the same on a busy one."""

from __future__ import annotations

import time

_WORK = 150_000  # additions
_REFERENCE = 0.012  # seconds that they take on an idle core of 2020
_MOST = 20.0


def slowness() -> float:
    """How many times longer a piece of work takes than on the machine the limits were set for; at least 1."""
    started = time.perf_counter()
    total = 0
    for number in range(_WORK):
        total += number
    return min(_MOST, max(1.0, (time.perf_counter() - started) / _REFERENCE))
