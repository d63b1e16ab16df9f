"""Faults in the driver's figures."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from devicekit.contract import MemoryInfo, ProcessMemory, hookimpl
from devicekit_conformance.selftest.honest import Honest, denying, machine


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


class CountsTooLate(Honest):
    """What is taken or given back shows when it is asked for again after a minute."""

    caught_by = "DK-DRIVER-003"

    def __init__(self) -> None:
        self._told: dict[int, tuple[float, MemoryInfo]] = {}

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        asked, found = self._told.get(index, (0.0, MemoryInfo()))
        if time.monotonic() - asked > 60.0:
            found = super().memory_info(index)
            self._told[index] = time.monotonic(), found
        return found


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
