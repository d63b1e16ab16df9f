"""Notices what happened to the process from outside: it was stopped, the machine slept, the clock was set."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

LOOK_EVERY = 1.0  # seconds
_HELD = 5.0  # seconds beyond the usual that a look may be late
_JUMP = 1.0  # seconds by which two clocks may part
_REMEMBERED = 300.0  # seconds
_MOST = 8


def boot_time() -> float:
    """Seconds since the machine was started, those in which it slept included where the system counts them."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(slots=True)
class Watch:
    """Compares the clocks with what they were; `look` must be called every second.

    Args:
        wall: the time of day, in seconds.
        steady: seconds that nobody can set, and that stand still while the machine sleeps.
        boot: seconds that nobody can set, and that go on.
    """

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    boot: Callable[[], float] = boot_time
    _last: tuple[float, float, float] | None = None
    _notes: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_MOST))

    def look(self) -> None:
        """Compare the clocks with what they were at the last look."""
        now = self.wall(), self.steady(), self.boot()
        if self._last is not None:
            wall, steady, boot = (after - before for before, after in zip(self._last, now, strict=True))
            if boot - steady > _JUMP:
                self._note(f"The machine was suspended for {boot - steady:.0f} s.")
            if steady - LOOK_EVERY > _HELD:
                self._note(f"This process was held up for {steady - LOOK_EVERY:.0f} s.")
            if abs(wall - boot) > _JUMP:
                way = "forward" if wall > boot else "back"
                self._note(f"The clock was set {way} by {abs(wall - boot):.0f} s.")
        self._last = now

    @property
    def notes(self) -> list[str]:
        """What was noticed in the last minutes, oldest first."""
        since = self.steady() - _REMEMBERED
        return [text for at, text in self._notes if at >= since]

    def _note(self, text: str) -> None:
        self._notes.append((self.steady(), text))
