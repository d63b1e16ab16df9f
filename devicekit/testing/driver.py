"""The simulated card's physical memory, as its driver hands it out: to this process and to others."""

from __future__ import annotations

import threading

__all__ = ["PhysicalMemory"]


class PhysicalMemory:
    """`total` bytes, and who holds how many. Holders are named; this process's devices are holders like any other.

    On a machine with unified memory, one PhysicalMemory serves the host and every device.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self.total - sum(self._held.values())

    def held_by(self, holder: str) -> int:
        return self._held.get(holder, 0)

    def holders(self) -> dict[str, int]:
        """Bytes by holder, for those that hold any."""
        return dict(self._held)

    def take(self, holder: str, nbytes: int) -> bool:
        """Give `holder` another `nbytes`; False, and nothing taken, when that many are not free."""
        with self._lock:
            if nbytes > self.free:
                return False
            self._held[holder] = self._held.get(holder, 0) + nbytes
            return True

    def give(self, holder: str, nbytes: int) -> None:
        """Take `nbytes` back from `holder`. Raises ValueError when it does not hold that many."""
        with self._lock:
            left = self._held.get(holder, 0) - nbytes
            if left < 0:
                raise ValueError(f"{holder!r} holds {left + nbytes} bytes and cannot give {nbytes} back")
            if left:
                self._held[holder] = left
            else:
                self._held.pop(holder, None)
