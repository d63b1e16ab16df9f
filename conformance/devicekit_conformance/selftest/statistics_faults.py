"""Faults in the allocator's statistics."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from devicekit.contract import AllocatorState, MemoryStats, hookimpl
from devicekit_conformance.selftest.honest import Honest, in_every_size, machine


class Floats(Honest):
    """Sizes are floats."""

    caught_by = "DK-STATE-001"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return in_every_size(super().memory_stats(index), float)


class NumbersWithoutAnAllocator(Honest):
    """The state says that there are no statistics, and there are numbers."""

    caught_by = "DK-STATE-002"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return replace(super().memory_stats(index), state=AllocatorState.UNSUPPORTED)


class ZerosBeforeUse(Honest):
    """Before the first allocation, unknown numbers are 0."""

    caught_by = "DK-STATE-003"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        if found.state is AllocatorState.UNINITIALISED:
            return MemoryStats(AllocatorState.OK, allocated=0, reserved=0)
        return found


class ReadingInitialises(Honest):
    """Reading statistics creates a context."""

    caught_by = "DK-STATE-003"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        machine().initialize()
        return super().memory_stats(index)


class RaisesBeforeUse(Honest):
    """Reading statistics before the first allocation raises."""

    caught_by = "DK-STATE-003"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        if not machine().initialized:
            raise RuntimeError("the allocator is not initialised")
        return super().memory_stats(index)


class AllocatedAboveReserved(Honest):
    """More is allocated than reserved."""

    caught_by = "DK-STATE-004"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        return found if found.reserved is None else replace(found, reserved=found.reserved // 2)


class Kibibytes(Honest):
    """Sizes are in KiB."""

    caught_by = "DK-STATE-005"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return in_every_size(super().memory_stats(index), lambda size: size // 1024)


class AlwaysZero(Honest):
    """Nobody counts, and everything is 0."""

    caught_by = "DK-STATE-005"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return in_every_size(super().memory_stats(index), lambda size: 0)


class AllocatedIsReserved(Honest):
    """What is reserved is called allocated."""

    caught_by = "DK-STATE-005"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        return replace(
            found, allocated=found.reserved, active=found.reserved, peak_allocated=found.peak_reserved
        )


class ReadingAllocates(Honest):
    """Each reading keeps some device memory."""

    caught_by = "DK-STATE-006"

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        if machine().initialized:
            self._kept.append(torch.empty(512, dtype=torch.uint8, device=torch.device("sim", index)))
        return super().memory_stats(index)


class UnknownSizes(Honest):
    """A caching allocator is claimed that does not know what is reserved."""

    caught_by = "DK-STATE-007"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return replace(super().memory_stats(index), reserved=None)


class ReadingEmpties(Honest):
    """Reading statistics empties the cache."""

    caught_by = "DK-STATE-008"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        machine().empty_cache()
        return super().memory_stats(index)


class ReadingResetsPeaks(Honest):
    """Reading statistics resets the peaks."""

    caught_by = "DK-STATE-008"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        self.reset_peak_memory_stats(index)
        return found


class ReadingWaits(Honest):
    """Reading statistics synchronises the device."""

    caught_by = "DK-STATE-009"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        if machine().initialized and not machine().in_bad_fork():
            machine().synchronize(index)
        return super().memory_stats(index)


class ForgetfulPeak(Honest):
    """The peak is what is allocated now."""

    caught_by = "DK-STATE-010"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        return replace(found, peak_allocated=found.allocated)


class PeakOfReserved(Honest):
    """The peak of allocated memory is the driver's."""

    caught_by = "DK-STATE-011"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        return replace(found, peak_allocated=found.peak_reserved)


class DeafReset(Honest):
    """Resetting the peaks does nothing."""

    caught_by = "DK-STATE-011"

    @hookimpl
    def reset_peak_memory_stats(self, index: int) -> None:
        """The peaks stay."""


class SlowReading(Honest):
    """Reading statistics takes two milliseconds."""

    caught_by = "DK-STATE-012"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        time.sleep(0.002)
        return super().memory_stats(index)


class RoundedReserved(Honest):
    """reserved is rounded to a gigabyte."""

    caught_by = "DK-STATE-013"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        if found.reserved is None:
            return found
        up = -(-found.reserved // (1 << 30)) << 30
        return replace(found, reserved=up, peak_reserved=max(up, found.peak_reserved or 0))


class IgnoresIndex(Honest):
    """Statistics are always the current device's."""

    caught_by = "DK-STATE-014"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return super().memory_stats(machine().index_of())


class CounterRunsBack(Honest):
    """A counter of calls goes down."""

    caught_by = "DK-STATE-015"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        return replace(
            found, num_device_free=None if found.num_device_free is None else 99 - found.num_device_free
        )


class CountsTheHost(Honest):
    """Pinned host memory counts as the device's."""

    caught_by = "DK-STATE-018"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        pinned = self.host_memory_stats().allocated or 0
        return in_every_size(super().memory_stats(index), lambda size: size + pinned)


class Wraps32Bits(Honest):
    """Sizes are counted in 32 bits."""

    caught_by = "DK-STATE-016"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return in_every_size(super().memory_stats(index), lambda size: size & 0xFFFFFFFF)


class ReservedIsAllocated(Honest):
    """What is allocated is called reserved."""

    caught_by = "DK-STATE-017"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        return replace(found, reserved=found.allocated, active=found.allocated)


class CountsEachTensor(Honest):
    """Reading statistics looks at every tensor there is."""

    caught_by = "DK-STATE-019"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        blocks = machine().device(index).allocator.counters.current("active")
        time.sleep(blocks * 1e-6)
        return super().memory_stats(index)
