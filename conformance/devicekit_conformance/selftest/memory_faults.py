"""Faults in emptying the cache."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from devicekit.contract import MemoryInfo, hookimpl
from devicekit_conformance.selftest.honest import Honest, machine, overwrite_live_memory


class EmptyingInitialises(Honest):
    """Emptying an unused device creates a context."""

    caught_by = "DK-CACHE-001"

    @hookimpl
    def empty_cache(self) -> None:
        machine().initialize()
        super().empty_cache()


class EmptyingNeedsUse(Honest):
    """Emptying an unused device raises."""

    caught_by = "DK-CACHE-001"

    @hookimpl
    def empty_cache(self) -> None:
        if not machine().initialized:
            raise RuntimeError("the device is not initialised")
        super().empty_cache()


class FreesLiveMemory(Honest):
    """Memory in use is given away."""

    caught_by = "DK-CACHE-002"

    @hookimpl
    def empty_cache(self) -> None:
        super().empty_cache()
        overwrite_live_memory()


class PretendsToEmpty(Honest):
    """Emptying does nothing."""

    caught_by = "DK-CACHE-003"

    @hookimpl
    def empty_cache(self) -> None:
        """The cache stays."""


class EmptyingAllocates(Honest):
    """Emptying keeps more memory each time."""

    caught_by = "DK-CACHE-005"

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    @hookimpl
    def empty_cache(self) -> None:
        super().empty_cache()
        if machine().initialized:
            self._kept.append(torch.empty(1 << 16, dtype=torch.uint8, device="sim:0"))


class EmptyingSwitchesDevice(Honest):
    """Emptying leaves the last device current."""

    caught_by = "DK-CACHE-006"

    @hookimpl
    def empty_cache(self) -> None:
        super().empty_cache()
        machine().set_device(1)


class DriverNeverGetsIt(Honest):
    """What is emptied never becomes free."""

    caught_by = "DK-CACHE-007"

    def __init__(self) -> None:
        self._lowest = 1 << 60

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        found = super().memory_info(index)
        self._lowest = min(self._lowest, found.free or 0)
        return replace(found, free=self._lowest)


class EmptiesOneDevice(Honest):
    """Only the current device is emptied."""

    caught_by = "DK-CACHE-008"

    @hookimpl
    def empty_cache(self) -> None:
        if machine().initialized:
            machine().device(None).empty_cache()


class _SpoilsPinned(Honest):
    def __init__(self) -> None:
        self._pinned: list[torch.Tensor] = []

    @hookimpl
    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned.append(super().pin_memory(tensor))
        return self._pinned[-1]

    def _spoil_pinned(self) -> None:
        for one in self._pinned:
            one.zero_()


class EmptyingFreesSources(_SpoilsPinned):
    """Emptying gives away what an upload that is still queued reads from."""

    caught_by = "DK-CACHE-009"

    @hookimpl
    def empty_cache(self) -> None:
        self._spoil_pinned()
        super().empty_cache()


class HostCacheFreesLiveMemory(_SpoilsPinned):
    """Emptying the host cache gives pinned memory in use away."""

    caught_by = "DK-CACHE-010"

    @hookimpl
    def empty_host_cache(self) -> None:
        self._spoil_pinned()


class CollectsOnce(Honest):
    """Collecting raises when there is nothing."""

    caught_by = "DK-CACHE-011"

    @hookimpl
    def collect_ipc(self) -> None:
        raise RuntimeError("there is nothing to collect")


class SlowEmptying(Honest):
    """Emptying takes a tenth of a second each time."""

    caught_by = "DK-CACHE-012"

    @hookimpl
    def empty_cache(self) -> None:
        time.sleep(0.1)
        super().empty_cache()
