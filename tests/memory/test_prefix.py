from __future__ import annotations

import gc

import numpy as np
import numpy.typing as npt
import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.audit import audit
from devicekit.memory.errors import CacheInUse, StaleNode, UnknownPolicy
from devicekit.memory.eviction import POLICIES
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_records import Insertion

Int32 = npt.NDArray[np.int32]


def tokens(*pages: int, page_size: int = 4, tail: int = 0) -> Int32:
    """One page of equal tokens for each number, and `tail` tokens more."""
    return np.array([t for page in pages for t in [page] * page_size] + [99] * tail, np.int32)


def ids(pages: bytes) -> list[int]:
    return [int(page) for page in np.frombuffer(pages, np.int32)]


def build(num_pages: int = 100, page_size: int = 4, policy: str = "lru") -> tuple[PageAllocator, PrefixCache]:
    pool = PageAllocator(num_pages, checked=True)
    return pool, PrefixCache(pool, page_size, policy=policy)


def publish(cache: PrefixCache, prompt: Int32, namespace: object = None, priority: int = 0) -> Insertion:
    """What a request does that is admitted, prefilled and finished at once."""
    match = cache.match(prompt, namespace)
    cache.lock(match.node)
    own = cache.allocator.take(-(-len(prompt) // cache.page_size) - len(match.pages) // 4)
    assert own is not None
    done = cache.insert(prompt, match.pages + own, namespace, held=match.node, priority=priority)
    cache.allocator.give(done.duplicates)
    cache.allocator.give((match.pages + own)[len(done.pages) :])
    cache.unlock(done.node)
    return done


# Matching


def test_an_empty_cache_matches_nothing() -> None:
    _, cache = build()
    match = cache.match(tokens(1, 2, 3))
    assert (match.pages, match.tokens) == (b"", 0)
    cache.lock(match.node)
    cache.unlock(match.node)


def test_a_prompt_finds_the_pages_of_the_longest_known_prefix() -> None:
    _, cache = build()
    done = publish(cache, tokens(1, 2, 3, 4))
    assert len(ids(done.pages)) == 4
    assert cache.match(tokens(1, 2, 3, 4, 5)).pages == done.pages
    assert cache.match(tokens(1, 2)).pages == done.pages[:8]
    match = cache.match(tokens(1, 2, 9, 9))
    assert (match.pages, match.tokens) == (done.pages[:8], 8)
    assert cache.match(tokens(2, 3)).tokens == 0


def test_only_whole_pages_are_shared() -> None:
    pool, cache = build()
    publish(cache, tokens(1, 2, tail=3))
    assert cache.total == 2
    assert pool.available == 98
    assert cache.match(tokens(1, 2, tail=3)).tokens == 8
    assert cache.match(tokens(1)[:3]).tokens == 0
    nearly = tokens(1, 2)
    nearly[7] = 77
    assert cache.match(nearly).tokens == 4


@pytest.mark.parametrize("page_size", [1, 2, 16, 256])
def test_every_page_size_finds_the_same_prefix(page_size: int) -> None:
    _, cache = build(page_size=page_size)
    done = publish(cache, tokens(1, 2, 3, page_size=page_size))
    match = cache.match(tokens(1, 2, 8, page_size=page_size))
    assert (match.pages, match.tokens) == (done.pages[:8], 2 * page_size)


def test_tokens_are_the_same_as_array_and_as_bytes() -> None:
    _, cache = build()
    publish(cache, tokens(1, 2))
    assert cache.match(tokens(1, 2).tobytes()).tokens == 8
    with pytest.raises(TypeError, match="int32"):
        cache.match(tokens(1, 2).astype(np.int64))


def test_namespaces_do_not_see_each_other() -> None:
    _, cache = build()
    first = publish(cache, tokens(1, 2), ("tenant", 1))
    second = publish(cache, tokens(1, 2), ("tenant", 2))
    assert not set(ids(first.pages)) & set(ids(second.pages))
    assert cache.match(tokens(1, 2), ("tenant", 1)).pages == first.pages
    assert cache.match(tokens(1, 2)).tokens == 0


def test_a_namespace_goes_with_its_last_page() -> None:
    pool, cache = build()
    for version in range(5):
        publish(cache, tokens(1, 2), version)
    cache.match(tokens(1), "never inserted")
    assert cache.namespaces == 5
    assert cache.evict(5) == 5
    assert cache.namespaces == 3
    cache.reset()
    assert cache.namespaces == 0
    assert pool.available == 100


def test_a_namespace_that_went_while_a_request_waited_comes_back() -> None:
    pool, cache = build()
    publish(cache, tokens(1), "tenant")
    match = cache.match(tokens(2), "tenant")
    cache.lock(match.node)
    cache.evict(1)
    done = cache.insert(tokens(2), pool.take(1) or b"", "tenant", held=match.node)
    assert (cache.namespaces, cache.protected) == (1, 1)
    cache.unlock(done.node)
    assert cache.match(tokens(2), "tenant").pages == done.pages
    assert audit(pool, owned=b"", cache=cache).balanced


def test_peeking_counts_and_changes_nothing() -> None:
    _, cache = build(num_pages=6)
    publish(cache, tokens(1, 2, 3))
    publish(cache, tokens(4, 5, 6))
    before = cache.stats
    assert cache.peek(tokens(1, 2, 9)) == 8
    assert cache.peek(tokens(1, 2, 3, 4)) == 12
    assert cache.peek(tokens(8)) == 0
    assert cache.stats == before
    assert len(list(cache.nodes())) == 2
    cache.evict(3)
    assert cache.peek(tokens(1, 2, 3)) == 0, "peeking made it no more recent"


def test_a_prompt_longer_than_one_edge_is_cached_whole() -> None:
    pool, cache = build(num_pages=30_000)
    prompt = np.arange(100_003, dtype=np.int32)
    done = publish(cache, prompt)
    assert cache.total == 25_000
    assert cache.match(prompt).pages == done.pages
    assert cache.peek(prompt[:70_000]) == 70_000
    assert cache.evict(10_001) == 10_001
    assert cache.match(prompt).pages == done.pages[: 14_999 * 4]
    assert audit(pool, owned=b"", cache=cache).balanced


def test_a_prefix_that_grows_long_at_once_is_of_several_edges() -> None:
    _, cache = build(num_pages=30_000)
    publish(cache, tokens(1))
    held = cache.hold(tokens(1)).node
    own = cache.allocator.take(25_000)
    assert own is not None
    done = cache.extend(held, np.arange(100_000, dtype=np.int32), own)
    assert done.pages == own
    # What growing or cutting a leaf copies has a bound.
    assert max(len(node.key) for node in cache.nodes()) <= 1 << 16


# Inserting: who owns what


def test_a_conversation_grows_one_prefix() -> None:
    pool, cache = build()
    publish(cache, tokens(1, 2))
    publish(cache, tokens(1, 2, 3))
    publish(cache, tokens(1, 2, 3, 4, 5))
    assert cache.total == 5
    assert pool.in_use == 5
    assert len(list(cache.nodes())) == 1


def test_pages_published_twice_stay_with_the_second_publisher() -> None:
    pool, cache = build()
    prompt = tokens(1, 2, 3)
    a, b = pool.take(3), pool.take(3)
    assert a is not None
    assert b is not None
    assert cache.insert(prompt, a).duplicates == b""
    done = cache.insert(prompt, b)
    assert done.pages == a
    assert done.duplicates == b
    assert cache.total == 3
    pool.give(done.duplicates)
    assert audit(pool, owned=b"", cache=cache).balanced


def test_only_the_overlap_is_a_duplicate() -> None:
    pool, cache = build()
    a, b = pool.take(3), pool.take(4)
    assert a is not None
    assert b is not None
    cache.insert(tokens(1, 2, 3), a)
    done = cache.insert(tokens(1, 2, 8, 9), b)
    assert done.duplicates == b[:8]
    assert done.pages == a[:8] + b[8:]
    assert cache.total == 5


def test_publishing_the_own_prefix_again_makes_no_duplicates() -> None:
    _, cache = build()
    first = publish(cache, tokens(1, 2, 3))
    again = cache.insert(tokens(1, 2, 3), first.pages)
    assert again.duplicates == b""
    assert again.pages == first.pages


def test_a_prefix_parts_below_a_node_that_goes_on_already() -> None:
    pool, cache = build()
    whole = publish(cache, tokens(1, 2, 3))
    match = cache.match(tokens(1, 2))
    cache.lock(match.node)
    done = cache.insert(tokens(1, 2, 8), match.pages + (pool.take(1) or b""), held=match.node)
    assert cache.match(tokens(1, 2, 3)).pages == whole.pages
    assert cache.match(tokens(1, 2, 8)).pages == done.pages
    assert cache.total == 4


def test_inserting_without_a_lock_leaves_everything_evictable_leaves_first() -> None:
    pool, cache = build()
    publish(cache, tokens(1, 2))
    for page in (3, 4, 5):
        done = cache.insert(tokens(1, page), pool.take(2) or b"")
        pool.give(done.duplicates)
    assert (cache.evictable, cache.protected) == (5, 0)
    for left in (4, 3, 2, 1, 0):
        assert cache.evict(1) == 1
        assert cache.total == left
        assert audit(pool, owned=b"", cache=cache).balanced
        assert cache.peek(tokens(1)) == (4 if left else 0)


def test_too_few_pages_are_refused_before_anything_changes() -> None:
    pool, cache = build()
    own = pool.take(1)
    assert own is not None
    with pytest.raises(ValueError, match="2 pages"):
        cache.insert(tokens(1, 2), own)
    assert cache.total == 0
    assert cache.match(tokens(1)).tokens == 0


def test_less_than_a_page_inserts_nothing_and_keeps_the_lock() -> None:
    pool, cache = build()
    match = cache.match(tokens(1))
    cache.lock(match.node)
    done = cache.insert(tokens(1)[:3], pool.take(1) or b"", held=match.node)
    assert (done.pages, done.duplicates) == (b"", b"")
    cache.unlock(done.node)
    assert cache.total == 0


# Locking


@pytest.mark.parametrize("tail", [0, 1, 3])
def test_whoever_publishes_nothing_new_still_gives_its_priority_to_what_it_holds(tail: int) -> None:
    _, cache = build(policy="priority")
    publish(cache, tokens(1), priority=0)
    held = cache.hold(tokens(1)).node
    done = cache.extend(held, tokens(tail=tail), b"", priority=1)
    assert (done.node, done.pages, done.duplicates) == (held, b"", b"")
    cache.unlock(held)
    publish(cache, tokens(2), priority=0)
    cache.evict(1)
    assert cache.peek(tokens(1)) == 4, "the less important page goes first"


def test_a_locked_prefix_is_protected_and_the_rest_is_not() -> None:
    _, cache = build()
    publish(cache, tokens(1, 2, 3))
    node = cache.match(tokens(1, 2)).node
    cache.lock(node)
    assert (cache.protected, cache.evictable) == (2, 1)
    assert cache.evict(10) == 1
    cache.lock(node)
    cache.unlock(node)
    assert (cache.protected, cache.evictable) == (2, 0)
    cache.unlock(node)
    assert (cache.protected, cache.evictable) == (0, 2)


def test_insert_moves_the_lock_to_what_it_inserted() -> None:
    pool, cache = build()
    publish(cache, tokens(1, 2))
    match = cache.match(tokens(1, 2, 3))
    cache.lock(match.node)
    done = cache.insert(tokens(1, 2, 3), match.pages + (pool.take(1) or b""), held=match.node)
    assert cache.protected == 3
    cache.unlock(done.node)
    assert cache.protected == 0
    with pytest.raises(StaleNode):
        cache.unlock(done.node)


def test_publishing_below_a_shared_prefix_does_not_lock_others_into_it() -> None:
    pool, cache = build()
    publish(cache, tokens(1, 2))
    node = cache.match(tokens(1, 2)).node
    cache.lock(node)
    cache.lock(node)  # two requests run on it
    done = cache.insert(tokens(1, 2, 3), cache.match(tokens(1, 2)).pages + (pool.take(1) or b""), held=node)
    assert cache.protected == 3
    cache.unlock(done.node)
    assert (cache.protected, cache.evictable) == (2, 1), "the other request holds only what it matched"


def test_a_cut_below_a_lock_keeps_it_whole() -> None:
    _, cache = build()
    done = publish(cache, tokens(1, 2, 3, 4))
    cache.lock(done.node)
    publish(cache, tokens(1, 2, 8))
    assert (cache.protected, cache.evictable) == (4, 1)
    cache.unlock(done.node)
    assert (cache.protected, cache.evictable) == (0, 5)


def test_an_evicted_prefix_cannot_be_locked() -> None:
    _, cache = build()
    done = publish(cache, tokens(1, 2))
    cache.evict(2)
    with pytest.raises(StaleNode, match="left the cache"):
        cache.lock(done.node)
    with pytest.raises(StaleNode):
        cache.unlock(done.node)
    assert (cache.protected, cache.evictable) == (0, 0)


def test_unlocking_what_nobody_locked_is_refused() -> None:
    _, cache = build()
    node = cache.match(tokens(1)).node
    with pytest.raises(StaleNode):
        cache.unlock(node)
    done = publish(cache, tokens(1, 2))
    with pytest.raises(StaleNode):
        cache.unlock(done.node)


# Evicting


def test_eviction_cuts_a_leaf_when_less_is_needed() -> None:
    pool, cache = build()
    done = publish(cache, tokens(1, 2, 3, 4))
    assert cache.evict(1) == 1
    assert pool.available == 97
    assert cache.match(tokens(1, 2, 3, 4)).pages == done.pages[:12]
    assert cache.evict(100) == 3
    assert cache.evict(1) == 0
    assert cache.evict(-1) == 0
    assert pool.available == 100


def test_the_least_recently_used_prefix_goes_first() -> None:
    _, cache = build()
    for page in (1, 2, 3):
        publish(cache, tokens(page))
    cache.match(tokens(1))
    cache.evict(1)
    assert [cache.peek(tokens(page)) for page in (1, 2, 3)] == [4, 0, 4]
    cache.evict(1)
    assert [cache.peek(tokens(page)) for page in (1, 2, 3)] == [4, 0, 0]


def test_shared_prefixes_outlive_what_hangs_below_them() -> None:
    _, cache = build()
    for page in (2, 3, 4):
        publish(cache, tokens(1, page))
    cache.evict(3)
    assert cache.peek(tokens(1)) == 4
    assert cache.total == 1


def order_of_eviction(cache: PrefixCache, pages: list[int]) -> list[int]:
    gone: list[int] = []
    while cache.evict(1):
        gone += [page for page in pages if page not in gone and not cache.peek(tokens(page))]
    return gone


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("lru", [2, 4, 1, 3]),
        ("lfu", [2, 4, 3, 1]),  # 1 was matched twice more, 3 once
        ("fifo", [1, 2, 3, 4]),
        ("slru", [2, 4, 1, 3]),
        ("priority", [3, 2, 4, 1]),
    ],
)
def test_policies_differ_in_what_goes_first(policy: str, order: list[int]) -> None:
    _, cache = build(policy=policy)
    for page, priority in ((1, 5), (2, 1), (3, -2), (4, 1)):
        publish(cache, tokens(page), priority=priority)
    for page in (1, 1, 3):
        cache.match(tokens(page))
    assert order_of_eviction(cache, [1, 2, 3, 4]) == order


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_prefix_that_is_held_and_let_go_for_ever_leaves_nothing_behind(policy: str) -> None:
    """Its rank changes with each match under some policies, and nothing has to be evicted meanwhile."""
    _, cache = build(policy=policy)
    publish(cache, tokens(1))

    def objects(matches: int) -> int:
        for _ in range(matches):
            node = cache.match(tokens(1)).node
            cache.lock(node)
            cache.unlock(node)
        gc.collect()
        return len(gc.get_objects())

    before = objects(500)
    assert objects(2500) - before < 300


def test_what_is_added_to_a_popular_prefix_is_not_popular_yet() -> None:
    _, cache = build(policy="lfu")
    publish(cache, tokens(1, 2))
    for _ in range(3):
        cache.match(tokens(1, 2))
    publish(cache, tokens(7))
    cache.match(tokens(7))
    publish(cache, tokens(1, 2, 3))
    cache.evict(1)
    assert cache.peek(tokens(1, 2, 3)) == 8
    assert cache.peek(tokens(7)) == 4


def test_a_long_scan_does_not_push_out_reused_prefixes_under_slru() -> None:
    pool, cache = build(num_pages=10, policy="slru")
    publish(cache, tokens(1, 2))
    cache.match(tokens(1, 2))
    for page in range(10, 60):
        if not pool.available:
            cache.evict(1)
        publish(cache, tokens(page))
    assert cache.peek(tokens(1, 2)) == 8


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownPolicy, match="lfu") as error:
        build(policy="random")
    assert isinstance(error.value, ConfigurationError)
    with pytest.raises(ValueError, match="page_size"):
        build(page_size=0)


# Reset


def test_reset_frees_every_page_and_forgets_every_prefix() -> None:
    pool, cache = build()
    publish(cache, tokens(1, 2, 3))
    publish(cache, tokens(1, 9), "other")
    cache.reset()
    assert pool.available == 100
    assert (cache.total, cache.peek(tokens(1))) == (0, 0)
    assert cache.evict(5) == 0
    publish(cache, tokens(1, 2, 3))
    assert cache.total == 3


def test_reset_is_refused_while_anything_is_locked() -> None:
    pool, cache = build()
    done = publish(cache, tokens(1, 2, 3))
    cache.lock(done.node)
    with pytest.raises(CacheInUse, match="3"):
        cache.reset()
    assert cache.match(tokens(1, 2, 3)).tokens == 12
    cache.unlock(done.node)
    cache.reset()
    assert pool.available == 100


def test_reset_leaves_pages_alone_that_others_hold() -> None:
    pool, cache = build()
    publish(cache, tokens(1, 2, 3))
    held = pool.take(5)
    cache.reset()
    assert pool.available == 95
    assert audit(pool, owned=held or b"", cache=cache).balanced


def test_what_reset_forgot_is_let_go_of_bit_by_bit() -> None:
    _, cache = build(num_pages=500)
    for page in range(200):
        publish(cache, tokens(page))
    cache.reset()
    assert cache.reclaim(30) == 30
    publish(cache, tokens(1))
    assert cache.total == 1
    assert 0 < cache.reclaim(10_000) < 170
    assert cache.reclaim(10_000) == 0
    assert cache.total == 1
    assert cache.peek(tokens(1)) == 4


def test_whoever_goes_on_from_a_prefix_lets_go_of_what_reset_forgot() -> None:
    _, cache = build(num_pages=400)
    for page in range(200):
        publish(cache, tokens(page))
    cache.reset()
    held = publish(cache, tokens(1)).node
    for page in range(2, 9):
        cache.lock(held)
        own = cache.allocator.take(1)
        assert own is not None
        cache.unlock(cache.extend(held, tokens(page), own).node)
    assert cache.reclaim(10_000) == 0


# Statistics


def test_the_hit_rate_counts_tokens_and_is_unknown_before_the_first_query() -> None:
    _, cache = build()
    assert cache.stats.hit_rate is None
    cache.match(tokens(1, 2))
    publish(cache, tokens(1, 2))
    cache.match(tokens(1, 2, 3, 4))
    cache.evict(1)
    stats = cache.stats
    assert (stats.queries, stats.queried_tokens, stats.hit_tokens) == (3, 32, 8)
    assert (stats.inserted_pages, stats.evicted_pages) == (2, 1)
    assert stats.hit_rate == 0.25
    cache.reset()
    publish(cache, tokens(5))
    assert (cache.stats.inserted_pages, cache.stats.evicted_pages) == (3, 1)


def test_a_match_cut_short_is_the_match_of_fewer_tokens() -> None:
    pool = PageAllocator(40, checked=True)
    cache = PrefixCache(pool, 4)
    branch = np.arange(24, dtype=np.int32)
    other = np.concatenate((branch[:12], np.full(12, 50, np.int32)))
    for tokens in (branch, other):
        pages = pool.take(6)
        assert pages is not None
        pool.give(cache.insert(tokens, pages).duplicates)
    for pages in range(7):
        before = cache.stats.hit_tokens
        whole = cache.match(branch)
        short = cache.shorten(whole, pages)
        assert cache.stats.hit_tokens - before == pages * 4
        again = cache.match(branch[: pages * 4])
        assert (
            (short.pages, short.tokens)
            == (again.pages, again.tokens)
            == (whole.pages[: pages * 4], pages * 4)
        )
        assert short.node is again.node or not pages
        cache.lock(short.node)
        assert cache.protected == pages
        cache.unlock(short.node)
        assert audit(pool, cache=cache).balanced
