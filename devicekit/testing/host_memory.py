"""Pinned host memory: real host tensors, and the cache that a vendor's pinned allocator keeps."""

from __future__ import annotations

import os
import threading
import weakref
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


class PinnedMemory:
    """Which host storages are pinned, and the pool they came from.

    The pool rounds up to a power of two and keeps what is freed until :meth:`empty`. Its words are the vendors':
    *allocated* is what the pool owns, *active* is what callers hold.
    """

    def __init__(self, memory: PhysicalMemory | None) -> None:
        self.arriving: list[Arrival] = []  # in the order in which the copies ran
        self._memory = memory
        self._holder = Holder(os.getpid(), "pinned host memory")
        self._lock = threading.Lock()
        self._live: dict[int, int] = {}
        self._registered: set[int] = set()
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
        size = 1 << max(storage.nbytes() - 1, 0).bit_length()
        with self._lock:
            self._settle()
            if self._cached[size]:
                self._cached[size] -= 1
            elif self._memory is None or self._memory.take(self._holder, size):
                self._allocated.add(size)
            else:
                raise torch.OutOfMemoryError(f"out of pinned host memory: {size} bytes were asked for")
            self._active.add(size)
            self._live[storage.data_ptr()] = size
        weakref.finalize(storage, self._returned.append, storage.data_ptr()).atexit = False
        return host

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        with self._lock:
            self._settle()
            address = tensor.untyped_storage().data_ptr()
            return address in self._live or address in self._registered

    def register(self, tensor: torch.Tensor) -> None:
        """Page-lock the memory of a contiguous host tensor where it is.

        Raises ValueError where it is locked already, and for other tensors.
        """
        storage = tensor.untyped_storage()
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(
                f"only contiguous tensors of the host can be registered, not one on {tensor.device}"
            )
        if self.is_pinned(tensor):
            raise ValueError("this memory is page-locked already")
        with self._lock:
            self._registered.add(storage.data_ptr())

    def unregister(self, tensor: torch.Tensor) -> None:
        """Undo :meth:`register`. Raises ValueError for memory that was not registered."""
        address = tensor.untyped_storage().data_ptr()
        with self._lock:
            if address not in self._registered:
                raise ValueError("this memory was not registered")
            self._registered.remove(address)

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

    def _settle(self) -> None:
        # A finalizer only appends, since it may run while this thread holds the lock.
        while self._returned:
            size = self._live.pop(self._returned.popleft())
            self._active.add(-size)
            self._cached[size] += 1
