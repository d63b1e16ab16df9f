"""How slow the machine is right now, so that time limits mean the same on a busy one."""

from __future__ import annotations

import time

_WORK = 150_000  # additions
_REFERENCE = 0.012  # seconds that they take on an idle core of 2020
_MOST = 20.0
_ANEW = 3


def slowness() -> float:
    """How many times longer a piece of work takes than on the machine the limits were set for; at least 1."""
    started = time.perf_counter()
    total = 0
    for number in range(_WORK):
        total += number
    return min(_MOST, max(1.0, (time.perf_counter() - started) / _REFERENCE))


class Deadline:
    """A limit in seconds of a machine that is not busy; it is asked again how busy it is before time is up."""

    def __init__(self, limit: float) -> None:
        self._limit, self._first = limit, time.monotonic()
        self.restart()

    def restart(self) -> None:
        """Begin anew, since something has happened: in all there are four limits, whatever keeps happening."""
        self._started = min(time.monotonic(), self._first + _ANEW * self._limit)
        self.at = self._started + self._limit

    def left(self) -> float:
        """Seconds that may still be waited; 0 once the time is up, on a busy machine as well."""
        if time.monotonic() >= self.at:
            self.extend()
        return max(0.0, self.at - time.monotonic())

    def extend(self) -> bool:
        """Whether the machine is so busy that there is time left after all."""
        later = self._started + self._limit * slowness()
        if later <= time.monotonic():
            return False
        self.at = later
        return True
