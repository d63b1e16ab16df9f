from __future__ import annotations

import numpy as np
import numpy.typing as npt

from devicekit.memory.events import BlocksRemoved, BlocksStored, CacheCleared, CacheEvent
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache

Int32 = npt.NDArray[np.int32]


def tokens(*pages: int) -> Int32:
    return np.repeat(np.array(pages, np.int32), 4)


def build() -> tuple[PrefixCache, list[CacheEvent]]:
    cache = PrefixCache(PageAllocator(100), 4)
    events: list[CacheEvent] = []
    cache.attach(events.append)
    return cache, events


def put(cache: PrefixCache, prompt: Int32, namespace: object = None) -> None:
    pages = cache.allocator.take(len(prompt) // 4)
    assert pages is not None
    cache.allocator.give(cache.insert(prompt, pages, namespace).duplicates)


def stored(events: list[CacheEvent]) -> list[BlocksStored]:
    return [event for event in events if isinstance(event, BlocksStored)]


def test_new_blocks_are_announced_with_their_tokens() -> None:
    cache, events = build()
    put(cache, tokens(1, 2, 3), "tenant")
    (event,) = stored(events)
    assert event.parent is None
    assert len(set(event.hashes)) == 3
    assert event.tokens == tokens(1, 2, 3).tobytes()
    assert (event.page_size, event.namespace) == (4, "tenant")


def test_only_what_is_new_is_announced_below_what_is_known() -> None:
    cache, events = build()
    put(cache, tokens(1, 2))
    put(cache, tokens(1, 2, 3))  # grows the edge
    put(cache, tokens(1, 8))  # parts from it
    put(cache, tokens(1, 2, 3))  # nothing new
    first, grown, parted = stored(events)
    assert grown.parent == first.hashes[1]
    assert grown.tokens == tokens(3).tobytes()
    assert parted.parent == first.hashes[0]
    assert parted.tokens == tokens(8).tobytes()


def test_what_grows_below_a_node_that_is_held_is_announced() -> None:
    cache, events = build()
    put(cache, tokens(1))
    held = cache.hold(tokens(1)).node
    for page in (2, 3):
        pages = cache.allocator.take(1)
        assert pages is not None
        held = cache.extend(held, tokens(page), pages).node
    first, *grown = stored(events)
    assert [event.tokens for event in grown] == [tokens(2).tobytes(), tokens(3).tobytes()]
    assert [event.parent for event in grown] == [first.hashes[-1], grown[0].hashes[-1]]


def test_a_hash_depends_on_the_whole_prefix_and_the_namespace_and_nothing_else() -> None:
    one, events_one = build()
    put(one, tokens(1, 2, 3))
    two, events_two = build()
    put(two, tokens(7))
    put(two, tokens(1))
    put(two, tokens(1, 2, 3))
    whole = stored(events_one)[0].hashes
    pieces = [block for event in stored(events_two)[1:] for block in event.hashes]
    assert pieces == list(whole)
    put(two, tokens(1, 2, 3), "other")
    put(two, tokens(9, 2, 3))
    assert not set(whole) & {block for event in stored(events_two)[3:] for block in event.hashes}


def test_evicted_blocks_are_announced_from_the_end() -> None:
    cache, events = build()
    put(cache, tokens(1, 2, 3))
    hashes = stored(events)[0].hashes
    cache.evict(1)
    cache.evict(2)
    assert events[1:] == [BlocksRemoved(hashes[2:]), BlocksRemoved(hashes[:2])]


def test_a_cut_edge_keeps_its_hashes() -> None:
    cache, events = build()
    put(cache, tokens(1, 2, 3))
    cache.match(tokens(1, 2))  # cuts the edge
    hashes = stored(events)[0].hashes
    cache.evict(3)
    gone = [block for event in events if isinstance(event, BlocksRemoved) for block in event.hashes]
    assert sorted(gone) == sorted(hashes)


def test_a_reset_is_one_event() -> None:
    cache, events = build()
    put(cache, tokens(1, 2, 3))
    cache.reset()
    assert events[1:] == [CacheCleared()]


def test_a_late_listener_learns_what_is_cached_already() -> None:
    cache, early = build()
    put(cache, tokens(1, 2))
    put(cache, tokens(1, 3))
    cache.attach(None)
    put(cache, tokens(4))
    assert len(early) == 2, "a detached listener hears nothing"
    late: list[CacheEvent] = []
    cache.attach(late.append)
    known: set[bytes] = set()
    for event in stored(late):
        assert event.parent is None or event.parent in known, "parents come first"
        known |= set(event.hashes)
    assert len(known) == cache.total == 4
    cache.evict(4)
    gone = {block for event in late if isinstance(event, BlocksRemoved) for block in event.hashes}
    assert gone == known


def test_nothing_is_hashed_without_a_listener() -> None:
    cache = PrefixCache(PageAllocator(100), 4)
    put(cache, tokens(1, 2))
    assert all(not node.hashes for node in cache.nodes())
