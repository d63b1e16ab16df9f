from __future__ import annotations

import numpy as np
import pytest

from devicekit.memory.audit import audit, inspect_tree
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.rows import RequestTable

PAGE_SIZE = 4


def cached(num_pages: int = 50) -> tuple[PageAllocator, PrefixCache, bytes]:
    """A cache of ten pages of which four are locked, and three pages that a request owns."""
    pool = PageAllocator(num_pages)
    cache = PrefixCache(pool, PAGE_SIZE)
    prompt = np.arange(10 * PAGE_SIZE, dtype=np.int32)
    pages = pool.take(10)
    own = pool.take(3)
    assert pages is not None
    assert own is not None
    cache.insert(prompt, pages)
    cache.lock(cache.match(prompt[: 4 * PAGE_SIZE]).node)
    return pool, cache, own


def test_a_sound_pool_balances_and_shows_its_terms() -> None:
    pool, cache, own = cached()
    found = audit(pool, owned=own, cache=cache)
    assert found.balanced
    assert (found.available, found.evictable, found.protected, found.owned, found.total) == (37, 6, 4, 3, 50)
    assert (found.difference, found.leaked, found.doubled) == (0, (), ())
    assert found.tree is not None
    assert found.tree.sound


def test_a_page_that_nobody_has_is_named() -> None:
    pool, cache, own = cached()
    leaked = pool.take_one()
    found = audit(pool, owned=own, cache=cache)
    assert not found.balanced
    assert found.difference == 1
    assert found.leaked == (leaked,)


def test_a_page_given_back_twice_is_named() -> None:
    pool, cache, own = cached()
    pool.give(own[:4])  # and still held
    found = audit(pool, owned=own, cache=cache)
    assert not found.balanced
    assert found.difference == -1
    assert found.doubled == tuple(np.frombuffer(own[:4], np.int32).tolist())


def test_two_faults_that_cancel_out_are_found_by_their_ids() -> None:
    pool, cache, own = cached()
    lost = pool.take_one()
    pool.give(own[:4])
    found = audit(pool, owned=own, cache=cache)
    assert found.difference == 0
    assert not found.balanced
    assert found.leaked == (lost,)


def test_a_number_of_owned_pages_is_enough_to_see_that_something_is_missing() -> None:
    pool, cache, _ = cached()
    assert audit(pool, owned=3, cache=cache).balanced
    found = audit(pool, owned=2, cache=cache)
    assert found.difference == 1
    assert found.leaked is None
    assert not found.balanced


def test_a_page_outside_the_pool_is_named() -> None:
    pool = PageAllocator(5)
    pool.take(1)
    found = audit(pool, owned=np.array([77], np.int32))
    assert found.difference == 0
    assert found.doubled == (77,)
    assert not found.balanced


def test_a_page_that_two_requests_claim_is_named() -> None:
    pool, cache, own = cached()
    found = audit(pool, owned=own + own[:4], cache=cache)
    assert found.doubled == tuple(np.frombuffer(own[:4], np.int32).tolist())
    assert not found.balanced


def test_a_cached_page_that_a_request_claims_is_named() -> None:
    pool, cache, own = cached()
    shared = cache.match(np.arange(PAGE_SIZE, dtype=np.int32)).pages
    found = audit(pool, owned=own + shared, cache=cache)
    assert found.doubled == tuple(np.frombuffer(shared, np.int32).tolist())
    assert found.difference == -1


@pytest.mark.parametrize("size", [1, 2, 7])
def test_each_id_that_is_missing_there_twice_or_no_id_of_the_pool_is_named(size: int) -> None:
    pool = PageAllocator(size)
    pages = np.frombuffer(pool.take(size) or b"", np.int32)
    everything = np.arange(1, size + 1, dtype=np.int32)
    assert audit(pool, owned=pages).balanced
    for one in everything.tolist():
        missing = audit(pool, owned=everything[everything != one])
        assert (missing.leaked, missing.doubled, missing.balanced) == ((one,), (), False)
        twice = audit(pool, owned=np.append(everything, np.int32(one)))
        assert (twice.leaked, twice.doubled, twice.balanced) == ((), (one,), False)
    for stranger in (-1, 0, size + 1):
        beside = audit(pool, owned=np.append(everything, np.int32(stranger)))
        assert (beside.leaked, beside.doubled, beside.balanced) == ((), (stranger,), False)
        instead = audit(pool, owned=np.append(everything[1:], np.int32(stranger)))
        assert (instead.leaked, instead.doubled, instead.balanced) == ((1,), (stranger,), False)


def test_rows_are_audited_like_pages() -> None:
    table = RequestTable(8, 4)
    rows = [table.take_one(), table.take_one()]
    assert audit(table.rows, owned=np.array(rows, np.int32)).balanced
    assert audit(table.rows, owned=2).balanced
    found = audit(table.rows, owned=np.array(rows[:1], np.int32))
    assert found.leaked == (rows[1],)


def test_a_counter_that_drifted_is_seen_beside_the_recount() -> None:
    _, cache, _ = cached()
    cache.evictable += 1
    tree = inspect_tree(cache)
    assert not tree.sound
    assert (tree.evictable, tree.evictable_counter) == (6, 7)


def test_damage_in_the_tree_is_counted_and_does_not_raise() -> None:
    pool, cache, own = cached()
    deepest = list(cache.nodes())[-1]
    deepest.key = deepest.key[4:]
    assert inspect_tree(cache).misfiled == 1
    assert not audit(pool, owned=own, cache=cache).balanced

    _, cache, _ = cached()
    top = next(cache.nodes())
    top.locks = 0
    assert inspect_tree(cache).mislocked == 1
