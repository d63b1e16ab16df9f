"""A hard cap on what a device hands out, and a callback that can make room when it, or the device, is full."""

from __future__ import annotations

from collections.abc import Callable

import torch

from devicekit.contract.errors import ConfigurationError, DeviceError
from devicekit.observe.allocations import Adaptor, Allocation, settle
from devicekit.ranges import whole


class MemoryLimitExceeded(DeviceError, torch.OutOfMemoryError):
    """An allocation would have taken a `Limit` over its bytes. Caught like any other out-of-memory error."""


class Limit(Adaptor):
    """Never lets the tensors made under `watch` hold more than ``limit`` bytes at once.

    A factory, a clone or a copy that does not fit is refused before it allocates. What another operator will need
    is known only when it has run: a result that does not fit is dropped, and never handed out. To limit
    everything that a process allocates, seen or not, there is `devicekit.Device.set_memory_fraction`.

    Raises:
        ConfigurationError: ``limit`` is not a positive number of bytes.
    """

    def __init__(self, limit: int) -> None:
        if limit <= 0:
            raise ConfigurationError(f"A memory limit must be a positive number of bytes, not {limit!r}.")
        self.limit = limit
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes held now."""
        settle()
        return self._held

    @property
    def left(self) -> int:
        """Bytes that can still be had."""
        return self.limit - self.held

    def admit(self, size: int) -> None:
        if self._held + size > self.limit:
            raise self._error(f"{size} bytes were asked for")

    def allocated(self, allocation: Allocation) -> None:
        self._held += allocation.bytes

    def refuse(self) -> Exception | None:
        if self._held > self.limit:
            return self._error(f"{self._held - self.limit} bytes too many were made")
        return None

    def freed(self, allocation: Allocation, at: float) -> None:
        self._held -= allocation.bytes

    def _error(self, what: str) -> MemoryLimitExceeded:
        return MemoryLimitExceeded(f"{what}, but {self._held} of the {self.limit} allowed are held.")


class OnOutOfMemory(Adaptor):
    """Calls ``callback(error, size, attempt)`` when an operator finds no memory; if it returns True, tries again.

    ``size`` is the bytes wanted, ``None`` where they are not known beforehand. An operator that writes into its
    arguments is not repeated, whatever the callback says.

    Args:
        attempts: how often one operator may fail before its error is raised without asking again.
    """

    def __init__(self, callback: Callable[[Exception, int | None, int], bool], *, attempts: int = 1) -> None:
        whole("attempts", attempts)
        self._callback = callback
        self._attempts = attempts

    def out_of_memory(self, error: Exception, size: int | None, attempt: int) -> bool:
        return attempt <= self._attempts and self._callback(error, size, attempt)
