"""The simulated card's physical memory, as its driver hands it out: to this process and to others."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

__all__ = ["Holder", "PhysicalMemory"]


class Holder(NamedTuple):
    """Who holds memory: a process, and what for."""

    pid: int
    purpose: str


class PhysicalMemory:
    """`total` bytes, and who holds how many. This process is a holder like any other.

    On a machine with unified memory, one PhysicalMemory serves the host and every device. What is `counted` as
    free lags behind what is free by `late` seconds of the host's clock.
    """

    def __init__(self, total: int, late: float = 0.0) -> None:
        self.total = total
        self._late = late
        self._past: deque[tuple[float, int]] = deque()  # until when so many bytes are still counted as free
        self._held: dict[Holder, int] = {}
        self._lock = threading.RLock()  # a finalizer may give back while this thread takes

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self.total - sum(self._held.values())

    @property
    def counted(self) -> int:
        """Bytes that the driver says are free."""
        with self._lock:
            self._forget()
            return self._past[0][1] if self._past else self.free

    def held_by(self, holder: Holder) -> int:
        return self._held.get(holder, 0)

    def holders(self) -> dict[Holder, int]:
        """Bytes by holder, for those that hold any."""
        return dict(self._held)

    def take(self, holder: Holder, nbytes: int) -> bool:
        """Give `holder` another `nbytes`; False, and nothing taken, when that many are not free."""
        with self._lock:
            if nbytes > self.free:
                return False
            self._remember()
            self._held[holder] = self._held.get(holder, 0) + nbytes
            return True

    def give(self, holder: Holder, nbytes: int) -> None:
        """Take `nbytes` back from `holder`. Raises ValueError when it does not hold that many."""
        with self._lock:
            left = self._held.get(holder, 0) - nbytes
            if left < 0:
                raise ValueError(
                    f"{holder.purpose} holds {left + nbytes} bytes and cannot give {nbytes} back"
                )
            self._remember()
            if left:
                self._held[holder] = left
            else:
                self._held.pop(holder, None)

    def _remember(self) -> None:
        if not self._late:
            return
        self._forget()
        until = time.monotonic() + self._late
        # Changes in quick succession show together, so that there are never more than a few to remember.
        if not self._past or until - self._past[-1][0] > self._late / 8:
            self._past.append((until, self.free))

    def _forget(self) -> None:
        while self._past and self._past[0][0] <= time.monotonic():
            self._past.popleft()
