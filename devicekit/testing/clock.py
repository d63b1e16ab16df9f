"""A clock that a test owns: time stands still until the test, or a wait, moves it.

Everything that waits takes a :class:`Clock`. In production that is :class:`SystemClock`; in a test it is
:class:`MockClock`, on which an hour passes in microseconds and twice the same way.

What it cannot do: it does not slow down or speed up code that reads ``time`` itself.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from devicekit.clock import Clock, SystemClock

__all__ = ["Clock", "ClockStuck", "MockClock", "SystemClock", "Timer"]


class ClockStuck(RuntimeError):
    """A thread slept on a :class:`MockClock` that nobody moved within the clock's patience."""


@dataclass(order=True)
class Timer:
    """A callback that runs when its clock reaches ``deadline`` (seconds). ``cancel()`` forgets it."""

    deadline: float
    _order: int
    _callback: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        self._callback = None


class MockClock:
    """Virtual time.

    Parameters
    ----------
    start
        What ``now()`` says at first, in seconds.
    autojump
        True (the default): ``sleep`` moves the clock itself, which is right when one thread does everything, since
        when that thread waits nothing else can happen. False: ``sleep`` blocks until another thread calls
        ``advance``, and raises :class:`ClockStuck` after ``patience`` real seconds, so that no test hangs.
    """

    def __init__(self, start: float = 0.0, *, autojump: bool = True, patience: float = 10.0) -> None:
        self._now = float(start)
        self._autojump = autojump
        self._patience = patience
        self._moved = threading.Condition(threading.Lock())
        self._timers: list[Timer] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        """Wait `seconds` of virtual time. Raises ValueError if negative, ClockStuck if nobody moves the clock."""
        deadline = self._now + _checked(seconds)
        if self._autojump:
            self.advance_to(deadline)
            return
        with self._moved:
            if not self._moved.wait_for(lambda: self._now >= deadline, self._patience):
                raise ClockStuck(
                    f"slept until {deadline:g} s, but the clock stayed at {self._now:g} s for {self._patience:g} "
                    "real seconds; call advance() from another thread, or use autojump=True"
                )

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds`, running every timer that falls due, each at its own time."""
        self.advance_to(self._now + _checked(seconds))

    def advance_to(self, deadline: float) -> None:
        """Move the clock on to `deadline` seconds. One that has passed moves nothing, but runs what is due."""
        while True:
            with self._moved:
                if not self._timers or self._timers[0].deadline > deadline:
                    self._now = max(self._now, deadline)
                    self._moved.notify_all()
                    return
                timer = heapq.heappop(self._timers)
                self._now = max(self._now, timer.deadline)
                self._moved.notify_all()
                callback = timer._callback
            # Outside the lock: a callback may read the clock, set timers, or wait for another thread that does.
            if callback is not None:
                callback()

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` when the clock reaches `deadline`, or at its next move if that has passed."""
        with self._moved:
            timer = Timer(deadline, next(self._order), callback)
            heapq.heappush(self._timers, timer)
            return timer

    def next_deadline(self) -> float | None:
        """When the next timer falls due, in seconds; None when nothing waits."""
        with self._moved:
            while self._timers and self._timers[0]._callback is None:
                heapq.heappop(self._timers)
            return self._timers[0].deadline if self._timers else None

    def jump(self) -> bool:
        """Move to the next timer and run it. False when there is none, and then nothing moves."""
        deadline = self.next_deadline()
        if deadline is None:
            return False
        self.advance_to(deadline)
        return True


def _checked(seconds: float) -> float:
    if not seconds >= 0:
        raise ValueError(f"time only moves forward: {seconds!r} seconds were asked for")
    return seconds
