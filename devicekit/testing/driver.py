"""The simulated card's physical memory, as its driver hands it out: to this process and to others."""

from __future__ import annotations

import threading
from typing import NamedTuple

__all__ = ["Holder", "PhysicalMemory"]


class Holder(NamedTuple):
    """Who holds memory: a process, and what for."""

    pid: int
    purpose: str


class PhysicalMemory:
    """`total` bytes, and who holds how many. This process is a holder like any other.

    On a machine with unified memory, one PhysicalMemory serves the host and every device.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held: dict[Holder, int] = {}
        self._lock = threading.RLock()  # a finalizer may give back while this thread takes

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self.total - sum(self._held.values())

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
            if left:
                self._held[holder] = left
            else:
                self._held.pop(holder, None)
