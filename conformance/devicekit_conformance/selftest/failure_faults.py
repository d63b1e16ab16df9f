"""Faults in running out of memory, and in limits."""

from __future__ import annotations

from dataclasses import replace

import torch

from devicekit.contract import ErrorKind, MemoryStats, hookimpl
from devicekit_conformance.selftest.honest import Honest, machine, overwrite_live_memory


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
