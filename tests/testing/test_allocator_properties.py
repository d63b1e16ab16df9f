"""Whatever is allocated and freed, in whatever order, the allocator's books balance."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devicekit.testing import MIB, SimConfig
from devicekit.testing.allocator import CachingAllocator
from devicekit.testing.blocks import Block
from devicekit.testing.counters import Counter

CAPACITY = 64 * MIB
CONFIGS = (
    SimConfig(capacity=CAPACITY),
    SimConfig(capacity=CAPACITY, rounding=2 * MIB, small_limit=2 * MIB),
    SimConfig(capacity=CAPACITY, caching=False),
)
sizes = st.one_of(
    st.integers(0, 4096), st.integers(4096, MIB), st.integers(MIB, 12 * MIB), st.integers(12 * MIB, CAPACITY)
)


class Fence:
    passed = False

    def done(self) -> bool:
        return self.passed


class Books(RuleBasedStateMachine):
    """Drives one allocator, and keeps books of its own to compare."""

    free = CAPACITY
    draining = False

    @initialize(config=st.sampled_from(CONFIGS))
    def start(self, config: SimConfig) -> None:
        self.config = config
        self.allocator = CachingAllocator(config, self)
        self.live: list[tuple[Block, int]] = []
        self.fences: list[Fence] = []
        self.before = self.allocator.stats()

    def take(self, nbytes: int) -> bool:
        if nbytes > self.free:
            return False
        self.free -= nbytes
        return True

    def give(self, nbytes: int) -> None:
        self.free += nbytes

    def drain(self) -> None:
        for fence in self.fences:
            fence.passed = True

    def describe(self) -> str:
        return ""

    @rule(nbytes=sizes, stream=st.integers(0, 1))
    def malloc(self, nbytes: int, stream: int) -> None:
        before = self.allocator.stats()
        try:
            block = self.allocator.malloc(nbytes, stream=stream)
        except torch.OutOfMemoryError:
            after = self.allocator.stats()
            assert after["num_ooms"] == before["num_ooms"] + 1
            assert after["reserved_bytes.all.current"] <= before["reserved_bytes.all.current"]
            assert after["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]
            # Nothing can be handed back any more: what is reserved is in use, or beside what is in use.
            assert self.releasable(after) == 0
            return
        assert block.size >= max(nbytes, 1)
        self.live.append((block, nbytes))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), fenced=st.booleans())
    def free_one(self, data: st.DataObject, fenced: bool) -> None:
        block, _ = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        before = self.allocator.stats()
        size = block.size
        if fenced:
            self.fences.append(Fence())
        self.allocator.free(block, tuple(self.fences[-1:]) if fenced else ())
        after = self.allocator.stats()
        assert before["allocated_bytes.all.current"] - after["allocated_bytes.all.current"] == size
        if fenced:
            assert after["active_bytes.all.current"] == before["active_bytes.all.current"]

    @rule()
    def finish_all_work(self) -> None:
        self.drain()
        self.allocator.retire()
        self.fences.clear()
        stats = self.allocator.stats()
        assert stats["active_bytes.all.current"] == stats["allocated_bytes.all.current"]

    @rule()
    def empty(self) -> None:
        before = self.allocator.stats()
        whole = sum(
            segment["total_size"] for segment in self.allocator.snapshot() if segment["active_size"] == 0
        )
        waiting = before["active_bytes.all.current"] > before["allocated_bytes.all.current"]
        self.allocator.empty_cache()
        after = self.allocator.stats()
        released = before["reserved_bytes.all.current"] - after["reserved_bytes.all.current"]
        assert released == whole or (waiting and released > whole)
        assert after["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]
        assert self.releasable(after) == 0
        if not self.live and not waiting:
            assert after["reserved_bytes.all.current"] == 0

    @rule()
    def reset_peaks(self) -> None:
        self.allocator.counters.reset_peaks()
        stats = self.allocator.stats()
        for key, value in stats.items():
            if key.endswith(".peak"):
                assert value == stats[key.removesuffix("peak") + "current"]

    @invariant()
    def counters_agree_with_each_other(self) -> None:
        stats = self.allocator.stats()
        assert all(type(value) is int and value >= 0 for value in stats.values())
        for pool in ("all", "small_pool", "large_pool"):
            requested, allocated, active, reserved, split = (
                stats[f"{name}_bytes.{pool}.current"]
                for name in ("requested", "allocated", "active", "reserved", "inactive_split")
            )
            assert requested <= allocated <= active <= reserved <= CAPACITY
            assert active + split <= reserved
        for key, value in stats.items():
            name, _, metric = key.rpartition(".")
            if metric == "current":
                assert stats[f"{name}.peak"] >= value
                assert stats[f"{name}.allocated"] - stats[f"{name}.freed"] == value
            if ".all." in key and metric in ("current", "allocated", "freed"):
                assert value == sum(
                    stats[key.replace(".all.", f".{pool}.")] for pool in ("small_pool", "large_pool")
                )

    @invariant()
    def counters_agree_with_what_was_done(self) -> None:
        stats = self.allocator.stats()
        assert stats["requested_bytes.all.current"] == sum(nbytes for _, nbytes in self.live)
        assert stats["allocated_bytes.all.current"] == sum(block.size for block, _ in self.live)
        assert stats["allocation.all.current"] == len(self.live)
        assert stats["reserved_bytes.all.current"] == CAPACITY - self.free
        assert stats["num_device_alloc"] - stats["num_device_free"] == stats["segment.all.current"]
        for key in ("num_ooms", "num_alloc_retries", "num_device_alloc", "num_device_free"):
            assert stats[key] >= self.before[key]
        self.before = stats

    @invariant()
    def blocks_tile_their_segments(self) -> None:
        stats, segments = self.allocator.stats(), self.allocator.snapshot()
        spans: list[tuple[int, int]] = []
        for segment in segments:
            at = segment["address"]
            previous = "start"
            for block in segment["blocks"]:  # type: ignore[attr-defined]  # a plain record
                assert block["address"] == at
                assert block["size"] > 0
                assert not (previous == block["state"] == "inactive"), "free neighbours are merged"
                at, previous = at + block["size"], block["state"]
            assert at == segment["address"] + segment["total_size"]  # type: ignore[operator]  # both are ints
            spans.append((segment["address"], at))  # type: ignore[arg-type]  # both are ints
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert stats["active_bytes.all.current"] == sum(segment["active_size"] for segment in segments)

    @staticmethod
    def releasable(stats: dict[str, int]) -> int:
        reserved, active, split = (
            stats[f"{name}_bytes.all.current"] for name in ("reserved", "active", "inactive_split")
        )
        return reserved - active - split


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=40, stateful_step_count=40)


def test_a_counter_remembers_both_ways() -> None:
    counter = Counter()
    for amount in (5, 7, -4, -8, 2):
        counter.add(amount)
    assert (counter.current, counter.peak, counter.allocated, counter.freed) == (2, 12, 14, 12)
