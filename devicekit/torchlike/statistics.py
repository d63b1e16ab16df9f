"""Turns a vendor's allocator counters into records: a key that is there is a value, an absent one is unknown,
and so is one whose value is no amount.
"""

from __future__ import annotations

from collections.abc import Mapping

from devicekit.contract import AllocatorState, HostMemoryStats, MemoryStats
from devicekit.torchlike.numbers import whole, wholes

# Count keys are spelt "segment.all.current"; the docstrings of torch and of every vendor name others.
_CURRENT = {
    "allocated": "allocated_bytes.all.current",
    "active": "active_bytes.all.current",
    "requested": "requested_bytes.all.current",
    "reserved": "reserved_bytes.all.current",
    "inactive_split": "inactive_split_bytes.all.current",
    "num_segments": "segment.all.current",
}
_PEAK = {
    "peak_allocated": "allocated_bytes.all.peak",
    "peak_active": "active_bytes.all.peak",
    "peak_reserved": "reserved_bytes.all.peak",
}
_COUNTERS = {name: name for name in ("num_alloc_retries", "num_ooms", "num_device_alloc", "num_device_free")}
KEYS: Mapping[str, str] = {**_CURRENT, **_PEAK, **_COUNTERS}
"""Field of `MemoryStats` to the key that torch's allocators use for it."""

# What cudaMallocAsync counts for certain: torch reports 0 for what is not meaningful there, and not which that is.
ASYNC_ALLOCATOR_KEYS: Mapping[str, str] = {name: KEYS[name] for name in ("allocated", "reserved")}


def memory_stats(raw: Mapping[str, int], source: str, keys: Mapping[str, str] = KEYS) -> MemoryStats:
    """The record for one device's raw counters.

    Args:
        raw: the vendor's flat keys; empty where the allocator was never used.
        source: who counted, such as ``"torch.cuda"``.
        keys: which raw key stands for which field; fields without one are unknown.
    """
    if not raw:
        return MemoryStats(AllocatorState.UNINITIALISED, source)
    return MemoryStats(AllocatorState.OK, source, raw=raw, **wholes(raw, keys))


def maintained(raw: Mapping[str, int], trusted: frozenset[str]) -> dict[str, int]:
    """Only those counters of ``torch.accelerator`` that the backend maintains.

    It reports every counter that torch knows of, and 0 for those the backend never touches: a counter that is not
    ``trusted`` is believed once it has moved.
    """
    return {key: value for key, value in raw.items() if value != 0 or key.split(".")[0] in trusted}


def host_memory_stats(raw: Mapping[str, int]) -> HostMemoryStats:
    """The record for a pinned-memory cache, whose words are shifted by one.

    There "allocated" is what the cache holds and "active" is what callers hold.
    """
    return HostMemoryStats(whole(raw.get("active_bytes.current")), whole(raw.get("allocated_bytes.current")))
