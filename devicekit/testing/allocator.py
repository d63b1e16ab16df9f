"""A caching allocator's books: it asks the driver for segments, cuts them into blocks, and keeps what is freed.

It holds no bytes; it decides addresses, and counts. The policy is the one that vendors share: two size classes,
best fit, split and merge, free lists per stream, one retry after everything cached went back to the driver.
"""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Protocol

import torch

from devicekit.testing.blocks import Block, Fence, FreeList, PoolKey, Segment
from devicekit.testing.config import MIB, SimConfig
from devicekit.testing.counters import MemoryCounters

__all__ = ["CachingAllocator", "Driver"]


class Driver(Protocol):
    """What the allocator needs of the device beneath it."""

    def take(self, nbytes: int) -> bool:
        """Hand out `nbytes`, or say that they are not there."""

    def give(self, nbytes: int) -> None:
        """Take `nbytes` back."""

    def drain(self) -> None:
        """Wait until all submitted work has retired."""

    def describe(self) -> str:
        """The device and its memory, for the message of an out-of-memory error."""


class CachingAllocator:
    """The allocator of one device. Safe to use from several threads, and from finalizers."""

    def __init__(self, config: SimConfig, driver: Driver, *, base_address: int = 1 << 40) -> None:
        self.counters = MemoryCounters()
        self.limit = config.capacity
        #: True: remember which code made each allocation, for :meth:`snapshot`.
        self.record_history = False
        self.config = config
        self._driver = driver
        # Re-entrant, since a driver that is slow moves the clock, which runs timers that may allocate.
        self._lock = threading.RLock()
        self._depth = 0
        self._segments: dict[int, Segment] = {}
        self._free: dict[PoolKey, FreeList] = defaultdict(FreeList)
        # A finalizer may run at any instruction, also while this thread holds the lock: it only appends here.
        self._returned: deque[Block] = deque()
        self._waiting: list[Block] = []
        self._next_address = base_address
        self._pool_ids = itertools.count(1)
        self._private_pools: set[int] = set()

    def malloc(self, nbytes: int, *, stream: int = 0, pool: int | None = None) -> Block:
        """A block of at least `nbytes`. Raises torch.OutOfMemoryError when it does not fit after one retry."""
        size = self._rounded(nbytes)
        small = size <= self.config.small_limit
        key = PoolKey("small_pool" if small else "large_pool", stream, pool)
        with self._locked():
            block = self._find(size, nbytes, key)
        if block is None:
            # Outside the lock: draining runs completions, which may be anybody's code.
            self._driver.drain()
            with self._locked():
                self.counters.num_alloc_retries += 1
                self.counters.num_sync_all_streams += 1
                self._release_cached()
                block = self._find(size, nbytes, key)
        if block is None:
            self.refuse(nbytes)
        block.frames = _caller_frames() if self.record_history else ()
        return block

    def free(self, block: Block, fences: tuple[Fence, ...] = ()) -> None:
        """Give a block back. It stays active until every fence is done."""
        block.fences = fences
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                if self._depth == 0:
                    self._settle()
            finally:
                self._lock.release()

    def refuse(self, nbytes: int) -> NoReturn:
        """Count an out-of-memory, and raise it."""
        with self._locked():
            self.counters.num_ooms += 1
            reserved, allocated = (
                self.counters.current("reserved_bytes"),
                self.counters.current("allocated_bytes"),
            )
        raise torch.OutOfMemoryError(
            f"out of memory: {nbytes} bytes ({nbytes / MIB:.2f} MiB) were asked for. {self._driver.describe()} "
            f"This process may hold {self.limit}; it has {reserved} reserved, and {allocated} of these allocated."
        )

    def retire(self) -> None:
        """Make blocks whose fences are done free for reuse."""
        with self._locked():
            self._retire()

    def empty_cache(self) -> None:
        """Give segments without an active block back to the driver; a private pool keeps its while it lives."""
        with self._locked():
            self._release_cached()

    def create_pool(self) -> int:
        """A private pool, whose segments nobody else uses, as graph capture needs. Returns its id."""
        pool = next(self._pool_ids)
        self._private_pools.add(pool)
        return pool

    def release_pool(self, pool: int) -> None:
        """Give up a private pool: its free segments go back to the driver at the next ``empty_cache``."""
        self._private_pools.discard(pool)

    def stats(self) -> dict[str, int]:
        with self._locked():
            return self.counters.as_dict()

    def snapshot(self) -> list[dict[str, object]]:
        """Every segment and its blocks, in the shape of vendors' ``memory_snapshot()``."""
        with self._locked():
            return [_segment_record(segment) for segment in self._segments.values()]

    # Parts. All of these run with the lock held.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._settle()
                yield
            finally:
                self._depth -= 1

    def _rounded(self, nbytes: int) -> int:
        return _round_up(max(nbytes, 1), self.config.rounding)

    def _find(self, size: int, nbytes: int, key: PoolKey) -> Block | None:
        self._retire()
        block = self._free[key].best_fit(size)
        if block is None:
            block = self._grow(size, key)
        elif block.split:
            self._count_inactive(block, -1)
        if block is not None:
            self._activate(block, size, nbytes)
        return block

    def _grow(self, size: int, key: PoolKey) -> Block | None:
        wanted = self._segment_size(size)
        if self.counters.current("reserved_bytes") + wanted > self.limit or not self._driver.take(wanted):
            return None
        segment = Segment(self._next_address, wanted, key)
        self._next_address += _round_up(wanted, 2 * MIB)
        self._segments[segment.address] = segment
        self.counters.num_device_alloc += 1
        self.counters.add("segment", key.size_class, 1)
        self.counters.add("reserved_bytes", key.size_class, wanted)
        return segment.first

    def _segment_size(self, size: int) -> int:
        config = self.config
        if not config.caching:
            return size
        if size <= config.small_limit:
            return config.small_segment
        if size < config.large_limit:
            return config.large_segment
        return _round_up(size, config.segment_rounding)

    def _activate(self, block: Block, size: int, nbytes: int) -> None:
        key = block.segment.key
        # A large block's remainder stays with it unless it is worth a large block of its own.
        least = self.config.rounding if key.size_class == "small_pool" else self.config.small_limit + 1
        if block.size - size >= least:
            rest = block.cut(size)
            self._count_inactive(rest, 1)
            self._free[key].add(rest)
        block.allocated = True
        block.requested = nbytes
        self.counters.add("active", key.size_class, 1)
        self.counters.add("active_bytes", key.size_class, block.size)
        self._count_allocation(block, 1)

    def _settle(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            block.allocated = False
            self._count_allocation(block, -1)
            if any(not fence.done() for fence in block.fences):
                self._waiting.append(block)
            else:
                self._deactivate(block)

    def _retire(self) -> None:
        still: list[Block] = []
        for block in self._waiting:
            if all(fence.done() for fence in block.fences):
                self._deactivate(block)
            else:
                still.append(block)
        self._waiting = still

    def _deactivate(self, block: Block) -> None:
        block.fences = ()
        key = block.segment.key
        self.counters.add("active", key.size_class, -1)
        self.counters.add("active_bytes", key.size_class, -block.size)
        for neighbour in (block.next, block.prev):
            if neighbour is not None and not neighbour.active:
                self._free[key].remove(neighbour)
                self._count_inactive(neighbour, -1)
                if neighbour is block.next:
                    block.absorb_next()
                else:
                    neighbour.absorb_next()
                    block = neighbour
        if block.split:
            self._count_inactive(block, 1)
        self._free[key].add(block)
        if not self.config.caching:
            self._release(block)

    def _release_cached(self) -> None:
        self._retire()
        for key, free in self._free.items():
            if key.private is None or key.private not in self._private_pools:
                for block in [block for block in free if not block.split]:
                    self._release(block)

    def _release(self, block: Block) -> None:
        segment = block.segment
        self._free[segment.key].remove(block)
        del self._segments[segment.address]
        self._driver.give(segment.size)
        self.counters.num_device_free += 1
        self.counters.add("segment", segment.key.size_class, -1)
        self.counters.add("reserved_bytes", segment.key.size_class, -segment.size)

    def _count_allocation(self, block: Block, sign: int) -> None:
        pool = block.segment.key.size_class
        self.counters.add("allocation", pool, sign)
        self.counters.add("allocated_bytes", pool, sign * block.size)
        self.counters.add("requested_bytes", pool, sign * block.requested)

    def _count_inactive(self, block: Block, sign: int) -> None:
        self.counters.add("inactive_split", block.segment.key.size_class, sign)
        self.counters.add("inactive_split_bytes", block.segment.key.size_class, sign * block.size)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _caller_frames() -> tuple[str, ...]:
    return tuple(
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_stack(limit=12)[:-2]
    )


def _segment_record(segment: Segment) -> dict[str, object]:
    blocks = list(segment.blocks())
    return {
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": sum(block.size for block in blocks if block.allocated),
        "active_size": sum(block.size for block in blocks if block.active),
        "requested_size": sum(block.requested for block in blocks if block.allocated),
        "stream": segment.key.stream,
        "segment_type": segment.key.size_class.removesuffix("_pool"),
        "segment_pool_id": segment.key.private,
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested,
                "state": block.state,
                "frames": list(block.frames),
            }
            for block in blocks
        ],
    }
