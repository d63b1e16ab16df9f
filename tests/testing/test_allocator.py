"""The allocator's policy: rounding, size classes, best fit, splitting, merging, retry, fences, private pools."""

from __future__ import annotations

import pytest
import torch

from devicekit.testing import MIB, SimConfig
from devicekit.testing.allocator import CachingAllocator
from devicekit.testing.blocks import Block


class Card:
    """A driver with `capacity` bytes that notes how it was used."""

    def __init__(self, capacity: int = 256 * MIB) -> None:
        self.free = capacity
        self.drained = 0

    def take(self, nbytes: int) -> bool:
        if nbytes > self.free:
            return False
        self.free -= nbytes
        return True

    def give(self, nbytes: int) -> None:
        self.free += nbytes

    def drain(self) -> None:
        self.drained += 1

    def describe(self) -> str:
        return "a card"


class Fence:
    def __init__(self) -> None:
        self.passed = False

    def done(self) -> bool:
        return self.passed


def make(capacity: int = 256 * MIB, config: SimConfig | None = None) -> tuple[CachingAllocator, Card]:
    card = Card(capacity)
    return CachingAllocator(config or SimConfig(capacity=capacity), card), card


def current(allocator: CachingAllocator, name: str, pool: str = "all") -> int:
    return allocator.stats()[f"{name}.{pool}.current"]


def test_sizes_are_rounded_up_and_the_request_is_remembered() -> None:
    allocator, _ = make()
    allocator.malloc(1)
    allocator.malloc(513)
    assert current(allocator, "allocated_bytes") == 512 + 1024
    assert current(allocator, "requested_bytes") == 514


@pytest.mark.parametrize(
    ("nbytes", "segment", "pool"),
    [
        (1, 2 * MIB, "small_pool"),
        (1 * MIB, 2 * MIB, "small_pool"),
        (1 * MIB + 1, 20 * MIB, "large_pool"),
        (10 * MIB - 512, 20 * MIB, "large_pool"),
        (10 * MIB, 10 * MIB, "large_pool"),
        (11 * MIB + 1, 12 * MIB, "large_pool"),
    ],
)
def test_segments_have_the_size_of_their_class(nbytes: int, segment: int, pool: str) -> None:
    allocator, card = make()
    allocator.malloc(nbytes)
    assert current(allocator, "reserved_bytes", pool) == segment == current(allocator, "reserved_bytes")
    assert card.free == 256 * MIB - segment


def test_freed_bytes_stay_reserved_and_are_used_again() -> None:
    allocator, _ = make()
    first = allocator.malloc(4096)
    address = first.address
    allocator.free(first)
    assert current(allocator, "allocated_bytes") == 0
    assert current(allocator, "reserved_bytes") == 2 * MIB
    assert allocator.malloc(4096).address == address
    assert allocator.stats()["num_device_alloc"] == 1


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator, _ = make()
    blocks = [allocator.malloc(size * 1024) for size in (64, 1, 16, 1, 32, 1)]
    for large in blocks[::2]:
        allocator.free(large)
    assert allocator.malloc(10 * 1024).address == blocks[2].address


def test_neighbours_that_are_free_become_one_block() -> None:
    allocator, _ = make()
    blocks = [allocator.malloc(1024) for _ in range(4)]
    for block in (blocks[0], blocks[2], blocks[1]):
        allocator.free(block)
    (segment,) = allocator.snapshot()
    sizes = [entry["size"] for entry in segment["blocks"]]  # type: ignore[attr-defined]  # a plain record
    assert sizes == [3072, 1024, 2 * MIB - 4096]
    allocator.free(blocks[3])
    assert current(allocator, "inactive_split_bytes") == 0


def test_a_segment_in_use_cannot_be_emptied_and_says_how_much_is_stuck() -> None:
    allocator, _ = make()
    kept, gone = allocator.malloc(1024), allocator.malloc(2048)
    allocator.free(gone)
    allocator.empty_cache()
    assert current(allocator, "reserved_bytes") == 2 * MIB
    assert current(allocator, "inactive_split_bytes") == 2 * MIB - 1024
    allocator.free(kept)
    allocator.empty_cache()
    assert current(allocator, "reserved_bytes") == 0


def test_emptying_gives_back_exactly_the_whole_free_segments() -> None:
    allocator, card = make()
    live = allocator.malloc(1024)
    for block in [allocator.malloc(30 * MIB), allocator.malloc(12 * MIB), allocator.malloc(2048)]:
        allocator.free(block)
    before = card.free
    allocator.empty_cache()
    assert card.free - before == 42 * MIB
    assert allocator.stats()["num_device_free"] == 2
    assert live.allocated


def test_a_failed_allocation_is_tried_again_once_the_cache_is_empty() -> None:
    allocator, card = make(40 * MIB)
    allocator.free(allocator.malloc(30 * MIB))
    block = allocator.malloc(36 * MIB)
    assert block.size == 36 * MIB
    assert card.drained == 1
    assert allocator.stats()["num_alloc_retries"] == 1
    assert allocator.stats()["num_ooms"] == 0


def test_out_of_memory_is_typed_counted_and_survived() -> None:
    allocator, _ = make(40 * MIB)
    allocator.malloc(30 * MIB)
    with pytest.raises(torch.OutOfMemoryError, match=str(20 * MIB)):
        allocator.malloc(20 * MIB)
    assert allocator.stats()["num_ooms"] == 1
    assert current(allocator, "reserved_bytes") == 30 * MIB
    assert allocator.malloc(1 * MIB).allocated


def test_fragmentation_fails_an_allocation_that_would_fit_in_the_sum_of_the_holes() -> None:
    allocator, _ = make(20 * MIB)
    blocks = [allocator.malloc(2 * MIB) for _ in range(10)]
    for block in blocks[::2]:
        allocator.free(block)
    stats = allocator.stats()
    assert stats["reserved_bytes.all.current"] - stats["allocated_bytes.all.current"] == 10 * MIB
    with pytest.raises(torch.OutOfMemoryError):
        allocator.malloc(4 * MIB)


def test_the_limit_counts_reserved_bytes() -> None:
    allocator, _ = make()
    allocator.limit = 20 * MIB
    allocator.malloc(12 * MIB)
    with pytest.raises(torch.OutOfMemoryError):
        allocator.malloc(10 * MIB)
    allocator.malloc(1024)


def test_a_block_stays_active_until_its_fences_have_passed() -> None:
    allocator, _ = make()
    fence = Fence()
    block = allocator.malloc(4096)
    allocator.free(block, (fence,))
    assert current(allocator, "allocated_bytes") == 0
    assert current(allocator, "active_bytes") == 4096
    assert allocator.malloc(4096).address != block.address
    allocator.empty_cache()
    assert current(allocator, "active_bytes") == 8192
    fence.passed = True
    allocator.retire()
    assert current(allocator, "active_bytes") == 4096


def test_reading_does_not_retire_what_waits() -> None:
    allocator, _ = make()
    fence = Fence()
    allocator.free(allocator.malloc(4096), (fence,))
    fence.passed = True
    assert current(allocator, "active_bytes") == 4096
    assert current(allocator, "active_bytes") == 4096


def test_streams_and_private_pools_do_not_share_blocks() -> None:
    allocator, _ = make()
    pool = allocator.create_pool()
    block = allocator.malloc(4096)
    allocator.free(block)
    assert allocator.malloc(4096, stream=1).address != block.address
    assert allocator.malloc(4096, pool=pool).address != block.address
    assert allocator.malloc(4096).address == block.address


def test_a_private_pool_keeps_its_segments_until_it_is_released() -> None:
    allocator, _ = make()
    pool = allocator.create_pool()
    allocator.free(allocator.malloc(4096, pool=pool))
    allocator.empty_cache()
    assert current(allocator, "reserved_bytes") == 2 * MIB
    allocator.release_pool(pool)
    allocator.empty_cache()
    assert current(allocator, "reserved_bytes") == 0


def test_without_caching_reserved_is_what_is_allocated() -> None:
    allocator, card = make(config=SimConfig.uncached())
    block = allocator.malloc(3000)
    assert current(allocator, "reserved_bytes") == current(allocator, "allocated_bytes") == 3072
    allocator.free(block)
    assert current(allocator, "reserved_bytes") == 0
    assert card.free == 256 * MIB


def test_rounding_to_2mib_hands_out_nothing_smaller() -> None:
    allocator, _ = make(config=SimConfig.rounding_to_2mib())
    allocator.malloc(1)
    assert current(allocator, "allocated_bytes") == 2 * MIB


def test_peaks_and_totals_can_be_reset_apart() -> None:
    allocator, _ = make()
    allocator.free(allocator.malloc(4096))
    allocator.counters.reset_peaks()
    stats = allocator.stats()
    assert stats["allocated_bytes.all.peak"] == 0
    assert stats["allocated_bytes.all.allocated"] == 4096
    allocator.counters.reset_accumulated()
    assert allocator.stats()["allocated_bytes.all.allocated"] == 0
    assert allocator.stats()["num_device_alloc"] == 0


def test_a_block_may_be_freed_while_the_allocator_is_at_work() -> None:
    allocator, card = make(20 * MIB)
    held = allocator.malloc(15 * MIB)

    def free_while_draining() -> None:
        allocator.free(held)

    card.drain = free_while_draining  # type: ignore[method-assign]  # a finalizer that runs at the worst moment
    assert allocator.malloc(18 * MIB).allocated


def test_a_finalizer_may_free_in_the_middle_of_an_allocation() -> None:
    allocator, _ = make()
    first, second, _third = (allocator.malloc(512) for _ in range(3))
    hole = second.address
    allocator.free(second)
    add = allocator.counters.add

    def add_after_a_collection(name: str, pool: str, amount: int) -> None:
        allocator.counters.add = add  # type: ignore[method-assign]  # only once
        allocator.free(first)
        add(name, pool, amount)

    allocator.counters.add = add_after_a_collection  # type: ignore[method-assign]  # at any instruction, really
    assert allocator.malloc(512).address == hole
    assert current(allocator, "allocated_bytes") == 1024
    (segment,) = allocator.snapshot()
    states = [entry["state"] for entry in segment["blocks"]]  # type: ignore[attr-defined]  # a plain record
    assert states == ["inactive", "active_allocated", "active_allocated", "inactive"]


def test_a_driver_may_run_code_that_allocates() -> None:
    allocator, card = make()
    inner: list[Block] = []
    take = card.take

    def take_slowly(nbytes: int) -> bool:
        card.take = take  # type: ignore[method-assign]  # only once
        inner.append(allocator.malloc(512))
        return take(nbytes)

    card.take = take_slowly  # type: ignore[method-assign]  # as a timer on the clock may
    outer = allocator.malloc(512)
    assert outer.address != inner[0].address
    assert current(allocator, "allocated_bytes") == 1024


def test_history_names_the_code_that_allocated() -> None:
    allocator, _ = make()
    allocator.malloc(512)
    allocator.record_history = True
    block = allocator.malloc(512)
    assert isinstance(block, Block)
    assert any("test_history_names_the_code_that_allocated" in frame for frame in block.frames)
    (segment,) = allocator.snapshot()
    frames = [entry["frames"] for entry in segment["blocks"]]  # type: ignore[attr-defined]  # a plain record
    assert frames[0] == []
    assert frames[1] == list(block.frames)
