"""The allocator's counters, in the flat dotted keys that vendors' ``memory_stats()`` use."""

from __future__ import annotations

__all__ = ["Counter", "MemoryCounters"]

#: Counters that exist once for the whole device and once for each of its two pools.
POOLED = (
    "allocation",
    "segment",
    "active",
    "inactive_split",
    "allocated_bytes",
    "reserved_bytes",
    "active_bytes",
    "inactive_split_bytes",
    "requested_bytes",
)
POOLS = ("small_pool", "large_pool")
SCALARS = ("num_alloc_retries", "num_ooms", "num_device_alloc", "num_device_free", "num_sync_all_streams")


class Counter:
    """A quantity that goes up and down: now, at its highest since the last reset, and both ways in total."""

    __slots__ = ("allocated", "current", "freed", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self.freed = 0

    def add(self, amount: int) -> None:
        self.current += amount
        if amount >= 0:
            self.allocated += amount
            if self.current > self.peak:
                self.peak = self.current
        else:
            self.freed -= amount


class MemoryCounters:
    """Every counter of one device's allocator. What is added to a pool is added to ``all`` as well."""

    def __init__(self) -> None:
        self.num_alloc_retries = 0
        self.num_ooms = 0
        self.num_device_alloc = 0
        self.num_device_free = 0
        self.num_sync_all_streams = 0
        self._pools = {pool: {name: Counter() for name in POOLED} for pool in ("all", *POOLS)}
        # Every allocation counts a dozen times: both counters of a pool and name, found in one step.
        self._both = {
            (name, pool): (self._pools[pool][name], self._pools["all"][name])
            for name in POOLED
            for pool in POOLS
        }

    def add(self, name: str, pool: str, amount: int) -> None:
        own, every = self._both[name, pool]
        own.add(amount)
        every.add(amount)

    def current(self, name: str) -> int:
        return self._pools["all"][name].current

    def reset_peaks(self) -> None:
        for counters in self._pools.values():
            for counter in counters.values():
                counter.peak = counter.current

    def reset_accumulated(self) -> None:
        for counters in self._pools.values():
            for counter in counters.values():
                counter.allocated = counter.freed = 0
        for name in SCALARS:
            setattr(self, name, 0)

    def as_dict(self) -> dict[str, int]:
        """``{"allocated_bytes.all.current": 0, …, "num_ooms": 0}``, sorted by key."""
        flat: dict[str, int] = {name: getattr(self, name) for name in SCALARS}
        for pool, counters in self._pools.items():
            for name, counter in counters.items():
                for metric in Counter.__slots__:
                    flat[f"{name}.{pool}.{metric}"] = getattr(counter, metric)
        return dict(sorted(flat.items()))
