"""Faults in the driver's figures, in emptying the cache, and in running out of memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from devicekit.contract import ErrorKind, MemoryInfo, MemoryStats, ProcessMemory, hookimpl
from devicekit_conformance.selftest.honest import Honest, denying, machine, overwrite_live_memory


class SwappedInfo(Honest):
    """free and total are swapped."""

    caught_by = "DK-DRIVER-001"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        found = super().memory_info(index)
        return MemoryInfo(found.total, found.free, "runtime")


class Mebibytes(Honest):
    """The driver's figures are in MiB."""

    caught_by = "DK-DRIVER-002"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        found = super().memory_info(index)
        return MemoryInfo((found.free or 0) >> 20, (found.total or 0) >> 20, "runtime")


class ShrinkingTotal(Honest):
    """total is what is free."""

    caught_by = "DK-DRIVER-002"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        found = super().memory_info(index)
        return replace(found, total=found.free)


class ConstantFree(Honest):
    """free is a constant."""

    caught_by = "DK-DRIVER-003"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        return replace(super().memory_info(index), free=1 << 33)


class FreeIgnoresTheCache(Honest):
    """free is total less what is allocated."""

    caught_by = "DK-DRIVER-004"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        found = super().memory_info(index)
        allocated = self.memory_stats(index).allocated or 0
        return replace(found, free=(found.total or 0) - allocated)


class InfoEmpties(Honest):
    """Reading the driver's figures empties the cache."""

    caught_by = "DK-DRIVER-005"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        machine().empty_cache()
        return super().memory_info(index)


class ProcessesAsTuples(Honest):
    """Processes are listed as tuples."""

    caught_by = "DK-DRIVER-006"

    @hookimpl
    def process_memory(self, index: int) -> Sequence[ProcessMemory] | None:
        return [(os.getpid(), 1)]  # type: ignore[list-item]  # the fault


class ForgetsItself(Honest):
    """This process is not listed."""

    caught_by = "DK-DRIVER-007"

    @hookimpl
    def process_memory(self, index: int) -> Sequence[ProcessMemory] | None:
        return []


class SaysNothing(Honest):
    """Neither statistics nor the driver's figures are implemented, so that nothing can be judged."""

    caught_by = "DK-DRIVER-008"
    manifest = denying("caching_allocator", "peak_memory", "driver_memory")
    memory_stats = None  # type: ignore[assignment]  # the fault
    memory_info = None  # type: ignore[assignment]  # the fault


class UnknownDriver(Honest):
    """The driver's figures are claimed and unknown."""

    caught_by = "DK-CAP-007"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        return MemoryInfo()


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


class EmptyingFreesSources(Honest):
    """Emptying gives away what an upload that is still queued reads from."""

    caught_by = "DK-CACHE-009"

    def __init__(self) -> None:
        self._pinned: list[torch.Tensor] = []

    @hookimpl
    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned.append(super().pin_memory(tensor))
        return self._pinned[-1]

    @hookimpl
    def empty_cache(self) -> None:
        for one in self._pinned:
            one.zero_()
        super().empty_cache()


class HostCacheFreesLiveMemory(Honest):
    """Emptying the host cache gives pinned memory in use away."""

    caught_by = "DK-CACHE-010"

    def __init__(self) -> None:
        self._pinned: list[torch.Tensor] = []

    @hookimpl
    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned.append(super().pin_memory(tensor))
        return self._pinned[-1]

    @hookimpl
    def empty_host_cache(self) -> None:
        for one in self._pinned:
            one.zero_()


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


class BlindClassifier(Honest):
    """Out of memory is not recognised."""

    caught_by = "DK-OOM-001"

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return None


class SubstringClassifier(Honest):
    """Whatever says "out of memory" is taken for it."""

    caught_by = "DK-OOM-002"

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return ErrorKind.OUT_OF_MEMORY if "out of memory" in repr(error) else super().classify_error(error)


class FragileClassifier(Honest):
    """Classifying an exception that cannot be printed raises."""

    caught_by = "DK-OOM-003"

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return super().classify_error(error) if str(error) is not None else None


class BooleanClassifier(Honest):
    """Classifying returns True or False."""

    caught_by = "DK-OOM-003"

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return isinstance(error, torch.OutOfMemoryError)  # type: ignore[return-value]  # the fault


class ShallowClassifier(Honest):
    """A wrapped error is not recognised."""

    caught_by = "DK-OOM-004"

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return ErrorKind.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else None


class BrokenAfterExhaustion(Honest):
    """After running out of memory, emptying gives memory in use away."""

    caught_by = "DK-OOM-005"

    @hookimpl
    def empty_cache(self) -> None:
        super().empty_cache()
        if (self.memory_stats(0).num_ooms or 0) > 0:
            overwrite_live_memory()


class IgnoresTheFraction(Honest):
    """The limit is accepted and not applied."""

    caught_by = "DK-OOM-006"

    @hookimpl
    def set_memory_fraction(self, index: int, fraction: float) -> None:
        """No limit."""


class AcceptsAnyFraction(Honest):
    """A limit below nothing is accepted."""

    caught_by = "DK-OOM-007"

    @hookimpl
    def set_memory_fraction(self, index: int, fraction: float) -> None:
        super().set_memory_fraction(index, min(max(fraction, 0.0), 1.0) if fraction == fraction else 1.0)


class LosesUpdates(Honest):
    """Statistics lose what threads other than the first free."""

    caught_by = "DK-HYG-008"

    def __init__(self) -> None:
        import threading

        for device in machine().devices:
            free, counters = device.allocator.free, device.allocator.counters

            def lossy(block, fences=(), free=free, counters=counters):  # type: ignore[no-untyped-def]  # a stand-in
                free(block, fences)
                if threading.current_thread() is not threading.main_thread():
                    self.lost += 512

            device.allocator.free = lossy  # type: ignore[method-assign]  # the fault
        self.lost = 0

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        if found.allocated is None or found.active is None or found.reserved is None:
            return found
        lost = min(self.lost, found.reserved - found.active)
        return replace(found, allocated=found.allocated + lost, active=found.active + lost)
