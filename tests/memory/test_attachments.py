from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from devicekit.memory.attached_audit import audit_attached
from devicekit.memory.attached_pages import AttachedAllocator, PairedAllocator
from devicekit.memory.attachments import Attachments, Int32
from devicekit.memory.audit import audit
from devicekit.memory.errors import DoubleFree


def ids(pages: bytes | None) -> Int32:
    assert pages is not None
    return np.frombuffer(pages, np.int32)


class Holders:
    """What callers of a `PairedAllocator` hold, kept in the plainest way."""

    def __init__(self, pool: PairedAllocator) -> None:
        self.pool = pool
        self.out: list[int] = []
        self.pins: Counter[int] = Counter()

    def hung(self) -> list[int]:
        return [page for page in self.out if self.pool.attached.of[page]]

    def check(self, *, closely: bool) -> None:
        attached = self.pool.attached
        pinned = [page for page, count in self.pins.items() if count]
        assert all(attached.of[page] for page in pinned), "what is pinned never goes"
        assert attached.available == attached.total - len(pinned)
        assert self.pool.in_use == len(self.out)
        if closely:
            pages = audit(self.pool, owned=np.array(self.out, np.int32))
            windows = audit_attached(attached, self.pool, [np.array(list(self.pins.elements()), np.int32)])
            assert pages.balanced, pages
            assert windows.balanced, windows


@pytest.mark.parametrize("checked", [True, False])
def test_a_hundred_thousand_random_operations_conserve_pages_and_window_pages(checked: bool) -> None:
    rng = random.Random(5)
    pool = PairedAllocator(60, 23, checked=checked)
    held = Holders(pool)
    refused = 0
    for at in range(50_000 if checked else 100_000):
        verb = rng.randrange(8)
        some = rng.sample(held.out, min(len(held.out), rng.randrange(6)))
        if verb <= 1:
            refused += not take(held, rng.randrange(6), bare=verb == 1)
        elif verb == 2:
            page = pool.take_one()
            assert bool(page) or pool.available == 0
            held.out += [page] if page else []
            held.pins[page] += bool(page)
        elif verb == 3:
            for page in some:
                held.out.remove(page)
                held.pins.pop(page, None)
            if some:
                pool.give(np.array(some[1:], np.int32))
                pool.give_one(some[0])
        elif verb == 4:
            bearing = [page for page in some if pool.attached.of[page]]
            pool.attached.pin(np.array(bearing, np.int32))
            held.pins.update(bearing)
        elif verb == 5:
            loose = [page for page in held.pins.elements() if rng.random() < 0.3]
            pool.attached.unpin(np.array(loose, np.int32))
            held.pins.subtract(loose)
        elif verb == 6:
            bare = [page for page in some if not pool.attached.of[page]]
            if pool.attached.attach(np.array(bare, np.int32)):
                held.pins.update(bare)
            else:
                assert len(bare) > pool.attached.available
        elif len(some) > 1:
            replace(held, some)
        held.check(closely=at % 500 == 0)
    assert refused > 100
    pool.reset()
    held = Holders(pool)
    held.check(closely=True)
    assert pool.available == 23


def take(held: Holders, count: int, *, bare: bool) -> bool:
    pool = held.pool
    source = pool.bare if bare else pool
    room, pages = source.available, source.take(count)
    assert (pages is not None) == (count <= room), "both or none"
    if pages is None:
        return False
    held.out += ids(pages).tolist()
    if not bare:
        held.pins.update(ids(pages).tolist())
        assert all(pool.attached.of[ids(pages)])
    return True


def replace(held: Holders, pages: list[int]) -> None:
    half = len(pages) // 2
    source, target = pages[:half], pages[half : 2 * half]
    had = held.pool.attached.of[source].copy(), held.pool.attached.of[target].copy()
    held.pool.attached.merge(np.array(source, np.int32), np.array(target, np.int32))
    for one, other, mine, theirs in zip(source, target, *had, strict=True):
        assert held.pool.attached.of[other] == (theirs or mine)
        held.pins[other] += held.pins.pop(one, 0)
        held.out.remove(one)
    held.pool.give(np.array(source, np.int32))


def test_what_has_been_idle_longest_goes_first_and_what_is_pinned_never() -> None:
    pool = PairedAllocator(10, 4)
    first, second, third, fourth = (pool.take_one() for _ in range(4))
    assert (pool.take_one(), pool.available) == (0, 0)
    for page in (second, first, third):
        pool.attached.unpin(np.array([page], np.int32))
    pool.attached.pin(np.array([second], np.int32))
    assert pool.available == 2
    fifth = pool.take_one()
    assert pool.attached.of[first] == 0
    assert pool.attached.of[[second, third, fourth, fifth]].all()
    assert len(set(pool.attached.of[[second, third, fourth, fifth]].tolist())) == 4


def test_a_page_given_back_takes_along_what_hangs_on_it() -> None:
    pool = AttachedAllocator(5, 2, checked=True)
    pages = ids(pool.take(3))
    assert pool.attached.attach(pages[:2])
    assert not pool.attached.attach(pages[2:])
    pool.give(pages[:1])
    assert pool.attached.available == 1
    assert pool.attached.attach(pages[2:])
    with pytest.raises(DoubleFree):
        pool.give(pages[:1])


def test_an_audit_names_what_leaked() -> None:
    pool = PairedAllocator(8, 4)
    pages = ids(pool.take(2))
    assert audit_attached(pool.attached, pool, [pages]).balanced
    found = audit_attached(pool.attached, pool, [pages[:1]])  # nobody knows who pinned the other
    assert found.leaked == (int(pool.attached.of[pages[1]]),)
    found = audit_attached(pool.attached, pool, [pages, pages[:1]])
    assert found.doubled == (int(pool.attached.of[pages[0]]),)
    lost = pool.attached.ids.take_one()
    assert audit_attached(pool.attached, pool, [pages]).leaked == (lost,)


def test_bookkeeping_of_what_is_idle_stays_as_small_as_the_pool() -> None:
    attached = Attachments(4, 3)
    page = np.array([1], np.int32)
    attached.attach(page)
    for _ in range(5000):
        attached.unpin(page)
        attached.pin(page)
    assert len(attached._queue) < 200
