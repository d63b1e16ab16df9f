"""How much memory a device can still give, as exact bytes, without changing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from devicekit.contract.records import AllocatorState
from devicekit.device.opening import DeviceLike, get_device

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_UNKNOWN = -1  # on the wire between ranks; callers see None


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """Two answers to "how much is free", in bytes. ``None``: the backend does not know.

    ``driver_free`` is what the driver would give to anyone. ``reusable`` adds what this process's allocator
    already holds and does not use: what a new tensor here can obtain. Without a caching allocator they are equal.
    """

    driver_free: int | None
    reusable: int | None
    source: str | None  # who answered for the driver: "runtime", "management", "os" or "estimate"
    ranks: int = 1  # over how many ranks the minimum was taken

    @property
    def bytes(self) -> int | None:
        """The figure to size pools by: ``reusable`` where it is known, else ``driver_free``."""
        return self.driver_free if self.reusable is None else self.reusable


class DecidesEmptying(Protocol):
    """Decides whether the cache is emptied before the figures are read, and does it."""

    def before_available_memory(self, requested: bool | None) -> object:
        """``requested``: what the caller said; ``None``: nothing."""


def available_memory(
    device: DeviceLike | None = None,
    *,
    group: ProcessGroup | None = None,
    empty_cache: bool | None = None,
    releases: DecidesEmptying | None = None,
) -> AvailableMemory:
    """Ask how much memory a device can still give.

    Args:
        device: as for `devicekit.get_device`.
        group: take the minimum over the ranks of this process group, which must accept host tensors. Every rank
            must call. A figure that one rank does not know is unknown to all.
        empty_cache: empty the allocator's cache first. This synchronises the device.
        releases: the device's `devicekit.release.ReleasePoints`: its policy decides whether to empty, and the
            ledger says so. Without it nothing is emptied unless ``empty_cache`` says so.

    Raises:
        HookError: the backend's driver query failed.
    """
    handle = get_device(device)
    if releases is not None:
        releases.before_available_memory(empty_cache)
    elif empty_cache:
        handle.empty_cache()
    info, stats = handle.memory_info(), handle.memory_stats()
    driver_free, reusable = info.free, None
    if driver_free is not None:
        if stats.state in (AllocatorState.UNSUPPORTED, AllocatorState.UNINITIALISED):
            reusable = driver_free
        else:
            used = stats.allocated if stats.active is None else stats.active
            if stats.reserved is not None and used is not None:
                reusable = driver_free + stats.reserved - used
    if group is None:
        return AvailableMemory(driver_free, reusable, info.source)
    return _smallest(group, driver_free, reusable, info.source)


def empty_device_cache(device: DeviceLike | None = None) -> bool:
    """Empty the allocator's cache. False: the backend has no such function, and nothing happened.

    `Device.empty_cache` does the same and reports what it gave back.

    Raises:
        HookError: the backend's function failed.
    """
    return get_device(device).release_cache()


def _smallest(
    group: ProcessGroup, driver_free: int | None, reusable: int | None, source: str | None
) -> AvailableMemory:
    import torch.distributed as dist

    # int64 is exact; the float32 that engines usually reduce is off by kilobytes above 16 GiB.
    ours = [_UNKNOWN if value is None else value for value in (driver_free, reusable)]
    agreed = torch.tensor(ours, dtype=torch.int64)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=group)
    free, reuse = (None if value == _UNKNOWN else value for value in agreed.tolist())
    return AvailableMemory(free, reuse, source, dist.get_world_size(group))
