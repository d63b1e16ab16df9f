"""Faults in what the manifest claims and denies."""

from __future__ import annotations

from dataclasses import replace

from devicekit.contract import (
    MemoryInfo,
    MemoryStats,
    hookimpl,
)
from devicekit_conformance.selftest.honest import (
    Honest,
    claiming,
    denying,
)


class UnknownDriver(Honest):
    """The driver's figures are claimed and unknown."""

    caught_by = "DK-CAP-007"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        return MemoryInfo()


class DeniesItsCache(Honest):
    """There is a cache, and it is not claimed."""

    caught_by = "DK-CAP-005"
    manifest = denying("caching_allocator")


class UnknownPeaks(Honest):
    """Peaks are claimed and unknown."""

    caught_by = "DK-CAP-006"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return replace(super().memory_stats(index), peak_allocated=None)


class ClaimsOneMemory(Honest):
    """Unified memory is claimed by a discrete card."""

    caught_by = "DK-CAP-004"
    manifest = claiming("unified_memory")


class DeniesStreams(Honest):
    """Streams are implemented and not claimed."""

    caught_by = "DK-CAP-002"
    manifest = denying("streams")


class ListedTwice(Honest):
    """A hook is listed as doing nothing and as emulated."""

    caught_by = "DK-CAP-008"
    manifest = replace(Honest.manifest, emulated=frozenset({"collect_ipc"}))


class ClaimsOverlap(Honest):
    """Overlapping copies are claimed, and the hook denies them."""

    caught_by = "DK-CAP-003"

    @hookimpl
    def copies_overlap(self, index: int) -> bool:
        return False


class IdleByItsWord(Honest):
    """Resetting the peaks is listed as doing nothing, and there are peaks."""

    caught_by = "DK-CAP-011"
    manifest = replace(Honest.manifest, noop=Honest.manifest.noop | {"reset_peak_memory_stats"})
