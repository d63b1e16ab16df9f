from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devicekit.memory.errors import DoubleFree, ForeignPage, PagesInUse, PoolError
from devicekit.memory.pages import PageAllocator


def ids(pages: bytes | None) -> list[int]:
    assert pages is not None
    return list(np.frombuffer(pages, np.int32))


def test_every_page_is_handed_out_once_and_never_page_zero() -> None:
    pool = PageAllocator(1000)
    taken = ids(pool.take(600)) + [pool.take_one() for _ in range(400)]
    assert sorted(taken) == list(range(1, 1001))
    assert pool.available == 0
    assert pool.in_use == 1000


def test_a_short_pool_answers_none_and_keeps_what_it_has() -> None:
    pool = PageAllocator(10)
    assert pool.take(11) is None
    assert pool.take_array(11) is None
    assert pool.available == 10
    held = pool.take(8)
    assert pool.take(3) is None
    assert pool.available == 2
    assert len(ids(pool.take(2)) + ids(held)) == 10
    assert pool.take_one() == 0


def test_single_and_bulk_pages_come_from_the_same_pool() -> None:
    pool = PageAllocator(100)
    singles = [pool.take_one() for _ in range(10)]
    for page in singles:
        pool.give_one(page)
    assert sorted(ids(pool.take(100))) == list(range(1, 101))


def test_given_pages_are_taken_again_before_fresh_ones() -> None:
    pool = PageAllocator(10_000)
    pages = pool.take(16)
    assert pages is not None
    pool.give(pages)
    assert pool.take(16) == pages


def test_pages_come_back_as_bytes_memoryview_or_array() -> None:
    pool = PageAllocator(30, checked=True)
    a, b, c = pool.take(10), pool.take(10), pool.take_array(10)
    assert a is not None
    assert b is not None
    assert c is not None
    c[0] = c[0]  # an array of the caller's own
    pool.give(a)
    pool.give(memoryview(b))
    pool.give(c)
    assert pool.available == 30


def test_page_ids_of_another_type_or_cut_in_half_are_refused() -> None:
    pool = PageAllocator(10)
    pool.take(10)
    with pytest.raises(TypeError, match="int32"):
        pool.give(np.array([1, 2], np.int64))
    with pytest.raises(ValueError, match="whole"):
        pool.give(b"\1\0\0\0\2")
    assert pool.available == 0


@pytest.mark.parametrize("bad", [-1, -100])
def test_a_negative_count_is_refused(bad: int) -> None:
    pool = PageAllocator(10)
    pool.give(pool.take(5) or b"")
    with pytest.raises(ValueError, match=str(bad)):
        pool.take(bad)
    with pytest.raises(ValueError, match=str(bad)):
        PageAllocator(bad)


def test_zero_pages_can_be_taken_from_any_pool() -> None:
    assert PageAllocator(0).take(0) == b""
    assert PageAllocator(0).take_one() == 0
    assert PageAllocator(0).take(1) is None


def test_reset_frees_everything_whoever_holds_it() -> None:
    pool = PageAllocator(500, checked=True)
    pool.take(300)
    pool.take_one()
    pool.reset()
    assert pool.available == 500
    assert sorted(ids(pool.take(500))) == list(range(1, 501))


@pytest.mark.parametrize("checked", [False, True])
def test_restore_returns_to_the_saved_state(checked: bool) -> None:
    pool = PageAllocator(100, checked=checked)
    held = ids(pool.take(40))
    pool.give_one(held.pop())
    state = pool.save()
    before = pool.free_pages().tolist()
    pool.take(30)
    pool.give(np.array(held, np.int32))
    pool.restore(state)
    assert pool.free_pages().tolist() == before
    assert pool.available == 61
    pool.give(np.array(held, np.int32))
    assert pool.available == 100


@pytest.mark.parametrize("checked", [False, True])
def test_restore_forgets_single_pages_given_back_since(checked: bool) -> None:
    pool = PageAllocator(10, checked=checked)
    held = ids(pool.take(4))
    state = pool.save()
    for page in held:
        pool.give_one(page)
    pool.restore(state)
    assert pool.available == 6
    assert not set(held) & set(pool.free_pages().tolist())


def test_pages_given_back_one_by_one_cost_no_more_memory_than_in_bulk() -> None:
    size = 50_000
    tracemalloc.start()
    try:
        pool = PageAllocator(size)
        for page in [pool.take_one() for _ in range(size)]:
            pool.give_one(page)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 5 * size
    assert pool.available == size


def test_a_state_of_another_size_is_refused() -> None:
    state = PageAllocator(10).save()
    with pytest.raises(ValueError, match="10"):
        PageAllocator(11).restore(state)
    with pytest.raises(ValueError, match="check"):
        PageAllocator(10, checked=True).restore(state)


@pytest.mark.parametrize("checked", [False, True])
def test_growing_adds_pages_and_keeps_those_that_are_out(checked: bool) -> None:
    pool = PageAllocator(10, checked=checked)
    held = ids(pool.take(7))
    pool.resize(20)
    assert pool.num_pages == 20
    assert sorted(held + ids(pool.take(13))) == list(range(1, 21))


@pytest.mark.parametrize("checked", [False, True])
def test_shrinking_needs_the_upper_pages_free(checked: bool) -> None:
    pool = PageAllocator(20, checked=checked)
    held = ids(pool.take(20))
    pool.give(np.array([p for p in held if p <= 17], np.int32))
    with pytest.raises(PagesInUse, match="3 pages above 10") as error:
        pool.resize(10)
    assert error.value.in_use == 3
    assert pool.num_pages == 20
    pool.give(np.array([p for p in held if p > 17], np.int32))
    pool.resize(10)
    assert sorted(ids(pool.take(10))) == list(range(1, 11))
    assert pool.take_one() == 0


def test_shrinking_a_pool_that_never_reached_that_far_is_free() -> None:
    pool = PageAllocator(1_000_000)
    assert pool.take_one() == 1
    pool.resize(100)
    assert pool.available == 99


def test_the_largest_free_run_shows_fragmentation() -> None:
    pool = PageAllocator(100)
    assert pool.largest_free_run() == 100
    held = ids(pool.take(100))
    assert pool.largest_free_run() == 0
    pool.give(np.array([p for p in held if p % 2], np.int32))
    assert pool.largest_free_run() == 1
    pool.give(np.array([10, 12, 14], np.int32))
    assert pool.largest_free_run() == 7


def test_a_checked_pool_names_pages_given_back_twice() -> None:
    pool = PageAllocator(100, checked=True)
    pages = np.array(ids(pool.take(5)), np.int32)
    pool.give(pages[:2])
    with pytest.raises(DoubleFree) as error:
        pool.give(pages[1:])
    assert error.value.pages == (pages[1],)
    assert pool.available == 97, "a refused give changes nothing"
    with pytest.raises(DoubleFree):
        pool.give(np.array([pages[3], pages[3]], np.int32))
    with pytest.raises(DoubleFree):
        pool.give_one(int(pages[0]))


@pytest.mark.parametrize("page", [0, -3, 101, 2**31 - 1, 50])
def test_a_checked_pool_names_pages_it_never_handed_out(page: int) -> None:
    pool = PageAllocator(100, checked=True)
    pool.take(5)
    with pytest.raises(PoolError, match=f"page {page} ") as error:
        pool.give(np.array([page], np.int32))
    assert isinstance(error.value, ForeignPage | DoubleFree)
    assert pool.available == 95


def test_an_unchecked_pool_notices_more_pages_than_it_has() -> None:
    pool = PageAllocator(100)
    pages = pool.take(100)
    assert pages is not None
    pool.give(pages)
    with pytest.raises(DoubleFree, match="100"):
        pool.give(pages)
    assert pool.available == 100


class PoolMachine(RuleBasedStateMachine):
    """Random use against a set of the ids that are out."""

    @initialize(size=st.integers(0, 700), checked=st.booleans())
    def build(self, size: int, checked: bool) -> None:
        self.pool = PageAllocator(size, checked=checked)
        self.size = size
        self.out: list[int] = []
        self.saved: tuple[object, list[int]] | None = None

    def _took(self, pages: list[int]) -> None:
        assert not set(pages) & set(self.out)
        assert all(1 <= p <= self.size for p in pages)
        self.out += pages

    @rule(count=st.integers(0, 400))
    def take(self, count: int) -> None:
        free = self.size - len(self.out)
        pages = self.pool.take(count)
        assert (pages is None) == (count > free)
        if pages is not None:
            self._took(ids(pages))

    @rule(count=st.integers(0, 300))
    def take_ones(self, count: int) -> None:
        for _ in range(count):
            page = self.pool.take_one()
            assert (page == 0) == (len(self.out) == self.size)
            if page:
                self._took([page])

    @precondition(lambda self: self.out)
    @rule(data=st.data(), singly=st.booleans())
    def give(self, data: st.DataObject, singly: bool) -> None:
        start = data.draw(st.integers(0, len(self.out) - 1))
        stop = data.draw(st.integers(start, len(self.out)))
        pages, self.out[start:stop] = self.out[start:stop], []
        if singly:
            for page in pages:
                self.pool.give_one(page)
        else:
            self.pool.give(np.array(pages, np.int32))

    @rule()
    def reset(self) -> None:
        self.pool.reset()
        self.out = []
        self.saved = None

    @rule()
    def save_and_restore(self) -> None:
        state = self.pool.save()
        self.pool.take(min(5, self.pool.available))
        self.pool.restore(state)

    @rule(size=st.integers(0, 900))
    def resize(self, size: int) -> None:
        above = sum(page > size for page in self.out)
        if above:
            with pytest.raises(PagesInUse) as error:
                self.pool.resize(size)
            assert error.value.in_use == above
        else:
            self.pool.resize(size)
            self.size = size

    @invariant()
    def conserves(self) -> None:
        assert self.pool.available + len(self.out) == self.size
        assert self.pool.in_use == len(self.out)
        free = self.pool.free_pages().tolist()
        assert sorted(free + self.out) == list(range(1, self.size + 1))


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("checked", [False, True])
def test_a_hundred_thousand_random_operations_conserve(checked: bool) -> None:
    rng = np.random.default_rng(7)
    size = 3000
    pool = PageAllocator(size, checked=checked)
    held: list[bytes] = []
    out = 0
    for kind, count in zip(rng.integers(0, 4, 50_000), rng.integers(0, 300, 50_000), strict=True):
        if kind < 2 or not held:
            pages = pool.take(int(count)) if kind else (pool.take_one() or None)
            if pages is not None:
                held.append(pages if isinstance(pages, bytes) else np.int32(pages).tobytes())
                out += len(held[-1]) // 4
        else:
            pages = held.pop(int(count) % len(held))
            out -= len(pages) // 4
            if len(pages) == 4:
                pool.give_one(int.from_bytes(pages, "little"))
            else:
                pool.give(pages)
        assert pool.available + out == size
    in_use = np.sort(np.frombuffer(b"".join(held), np.int32))
    assert np.array_equal(np.sort(np.concatenate((in_use, pool.free_pages()))), np.arange(1, size + 1))
