"""Pinned host memory: which bytes of the host are locked, and the cache that a vendor's pinned allocator keeps."""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right, insort
from collections import Counter as Tally
from collections import deque
from dataclasses import dataclass

import torch

from devicekit.testing.counters import Counter
from devicekit.testing.driver import Holder, PhysicalMemory

__all__ = ["Arrival", "PinnedMemory"]


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """Bytes that a device has written to the host, and that the host cannot see yet."""

    to: torch.Tensor
    data: torch.Tensor


class _Ranges:
    """Ranges of addresses, none of which overlaps another."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}

    def add(self, start: int, end: int) -> None:
        if start not in self._ends:
            insort(self._starts, start)
        self._ends[start] = end

    def remove(self, start: int) -> int:
        """Take out the range that begins at `start`, and return its length."""
        self._starts.remove(start)
        return self._ends.pop(start) - start

    def end_of(self, start: int) -> int | None:
        """The end of the range that begins at `start`."""
        return self._ends.get(start)

    def end_around(self, address: int) -> int | None:
        """The end of the range in which `address` is."""
        before = bisect_right(self._starts, address)
        end = self._ends[self._starts[before - 1]] if before else address
        return end if end > address else None

    def touches(self, start: int, end: int) -> bool:
        """Whether any byte from `start` up to `end` is in a range."""
        following = bisect_right(self._starts, start)
        begins_inside = following < len(self._starts) and self._starts[following] < end
        return begins_inside or self.end_around(start) is not None


class PinnedMemory:
    """Which bytes of the host are locked, and the pool that they came from.

    The pool rounds up to a power of two and keeps what is freed until :meth:`empty`. Its words are the vendors':
    *allocated* is what the pool owns, *active* is what callers hold.
    """

    def __init__(self, memory: PhysicalMemory | None) -> None:
        self.arriving: list[Arrival] = []  # in the order in which the copies ran
        self._memory = memory
        self._holder = Holder(os.getpid(), "pinned host memory")
        self._lock = threading.Lock()
        self._live = _Ranges()
        self._registered = _Ranges()
        self._cached: Tally[int] = Tally()
        self._returned: deque[int] = deque()
        self._allocated = Counter()
        self._active = Counter()

    def empty_tensor(self, like: torch.Tensor) -> torch.Tensor:
        """An uninitialised pinned host tensor of the shape, strides and dtype of `like`."""
        host = torch.empty_like(like, device="cpu")
        storage = host.untyped_storage()
        if not storage.nbytes():
            return host
        size = _pooled(storage.nbytes())
        with self._lock:
            self._settle()
            if self._cached[size]:
                self._cached[size] -= 1
            elif self._memory is None or self._memory.take(self._holder, size):
                self._allocated.add(size)
            else:
                raise torch.OutOfMemoryError(f"out of pinned host memory: {size} bytes were asked for")
            self._active.add(size)
            self._live.add(storage.data_ptr(), storage.data_ptr() + storage.nbytes())
        weakref.finalize(storage, self._returned.append, storage.data_ptr()).atexit = False
        return host

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether every byte of a host tensor is locked, from its first element to its last. Of none: False."""
        if tensor.device.type != "cpu":
            return False
        start, end = _span(tensor)
        with self._lock:
            self._settle()
            return start < end and self._covers(start, end)

    def register(self, tensor: torch.Tensor) -> None:
        """Lock the bytes of a contiguous host tensor where they are.

        Raises ValueError where any is locked already, and for other tensors.
        """
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(
                f"only contiguous tensors of the host can be registered, not one on {tensor.device}"
            )
        start, end = _span(tensor)
        if start == end:
            raise ValueError("a tensor without elements has no memory to register")
        with self._lock:
            self._settle()
            if self._live.touches(start, end) or self._registered.touches(start, end):
                raise ValueError("this memory is page-locked already")
            self._registered.add(start, end)

    def unregister(self, tensor: torch.Tensor) -> None:
        """Undo :meth:`register` of the same bytes. Raises ValueError for any others."""
        start, end = _span(tensor)
        with self._lock:
            if tensor.device.type != "cpu" or self._registered.end_of(start) != end:
                raise ValueError("this memory was not registered: give a tensor of the same address and size")
            self._registered.remove(start)

    def empty(self) -> None:
        """Give cached host memory back."""
        with self._lock:
            self._settle()
            for size, count in self._cached.items():
                self._allocated.add(-size * count)
                if self._memory is not None and count:
                    self._memory.give(self._holder, size * count)
            self._cached.clear()

    def stats(self) -> dict[str, int]:
        with self._lock:
            self._settle()
            counters = {"allocated_bytes": self._allocated, "active_bytes": self._active}
            return {
                f"{name}.{metric}": getattr(counter, metric)
                for name, counter in counters.items()
                for metric in Counter.__slots__
            }

    def _covers(self, start: int, end: int) -> bool:
        while start < end:
            further = self._live.end_around(start) or self._registered.end_around(start)
            if further is None:
                return False
            start = further
        return True

    def _settle(self) -> None:
        # A finalizer only appends, since it may run while this thread holds the lock.
        while self._returned:
            size = _pooled(self._live.remove(self._returned.popleft()))
            self._active.add(-size)
            self._cached[size] += 1


def _pooled(nbytes: int) -> int:
    """What the pool takes for a block of `nbytes`."""
    return 1 << (nbytes - 1).bit_length()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses from a tensor's first element up to the end of its last."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    steps = sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (steps + 1) * tensor.itemsize
