"""Faults by script: make the n-th use of a named operation fail, hang, drag, or take the device away.

A script is deterministic, says afterwards what it did, and knows nothing of any device: whoever owns the
operations calls :meth:`FaultScript.visit` at the start of each.

    with simulator.inject(Fault("allocate", OutOfMemory(), nth=3)) as script:
        ...
    assert script.hits[0].occurrence == 3
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from devicekit.testing.clock import Clock
from devicekit.testing.errors import DeviceLost, HangEnded

__all__ = [
    "Effect",
    "Fault",
    "FaultScript",
    "Hang",
    "Hit",
    "LoseDevice",
    "OutOfMemory",
    "Raise",
    "Slow",
]


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The operation raises the out-of-memory error that its owner would raise by itself."""


@dataclass(frozen=True, slots=True)
class Raise:
    """The operation raises what `error` makes: an exception type, or a callable that returns an exception."""

    error: Callable[[], BaseException]


@dataclass(frozen=True, slots=True)
class Slow:
    """The operation takes another `seconds` on the clock of the device, and then succeeds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """The calling thread blocks until ``release()``, or for `bound` real seconds, and then raises HangEnded."""

    bound: float = 5.0


@dataclass(frozen=True, slots=True)
class LoseDevice:
    """From here on every operation on this device raises DeviceLost."""


Effect: TypeAlias = "OutOfMemory | Raise | Slow | Hang | LoseDevice"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to which uses of an operation.

    Parameters
    ----------
    operation
        Its name, as its owner documents it; ``"*"`` is any.
    effect
        What happens.
    nth
        The first use that is affected, counted from 1 since the script began.
    times
        How many uses in a row are affected; None is all from then on.
    index
        Only uses on this device are counted and affected; None is every device.
    """

    operation: str
    effect: Effect
    nth: int = 1
    times: int | None = 1
    index: int | None = None

    def __post_init__(self) -> None:
        if self.nth < 1 or (self.times is not None and self.times < 1):
            raise ValueError(f"nth and times count from 1: {self!r}")

    def affects(self, occurrence: int) -> bool:
        return occurrence >= self.nth and (self.times is None or occurrence < self.nth + self.times)


@dataclass(frozen=True, slots=True)
class Hit:
    """One use that a fault affected: `occurrence` is its count among the uses that the fault watches."""

    fault: Fault
    operation: str
    index: int | None
    occurrence: int
    time: float


@dataclass(slots=True)
class FaultScript:
    """Faults, and the record of what they did. ``seen`` counts every visited operation, affected or not."""

    faults: tuple[Fault, ...]
    clock: Clock
    hits: list[Hit] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    lost: set[int | None] = field(default_factory=set)
    _watched: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _released: threading.Event = field(default_factory=threading.Event)

    def visit(self, operation: str, index: int | None = None) -> bool:
        """Let the script act on one use of `operation`.

        Returns True when the use must end in the owner's own out-of-memory error. Raises what the faults raise,
        DeviceLost when the device is lost, HangEnded when a hang reached its bound.
        """
        if index in self.lost:
            raise DeviceLost(index)
        due: list[Fault] = []
        with self._lock:
            self.seen[operation] += 1
            for number, fault in enumerate(self.faults):
                if fault.operation not in (operation, "*") or fault.index not in (None, index):
                    continue
                occurrence = self._watched[number] = self._watched.get(number, 0) + 1
                if fault.affects(occurrence):
                    due.append(fault)
                    self.hits.append(Hit(fault, operation, index, occurrence, self.clock.now()))
        # Every effect, not only those up to the first that asks for out of memory.
        wants_oom = [self._act(fault.effect, index) for fault in due]
        return any(wants_oom)

    def untouched(self) -> tuple[Fault, ...]:
        """Faults that have affected nothing yet. A test that ends with some has not tested what it says."""
        struck = [hit.fault for hit in self.hits]
        return tuple(fault for fault in self.faults if fault not in struck)

    def release(self) -> None:
        """End every hang, now and later: the operations that hung go on as if they had been slow."""
        self._released.set()

    def _act(self, effect: Effect, index: int | None) -> bool:
        match effect:
            case OutOfMemory():
                return True
            case Raise(error):
                raise error()
            case Slow(seconds):
                self.clock.sleep(seconds)
            case Hang(bound):
                if not self._released.wait(bound):
                    raise HangEnded(f"a scripted hang on device {index} was not ended within {bound:g} s")
            case LoseDevice():
                self.lost.add(index)
                raise DeviceLost(index)
        return False
