from __future__ import annotations

import pytest

from bench.chat import PAGE_SIZE, chat_trace, footprint, replay
from bench.page_lru import tokens_found
from devicekit.memory.audit import audit
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_chat_trace_conserves_pages_and_finds_what_was_said_before(share: float) -> None:
    turns = chat_trace(conversations=60)
    pages = int(share * 60 * 145)
    pool = PageAllocator(pages)
    cache = PrefixCache(pool, PAGE_SIZE)
    assert replay(turns, pool, cache) > 0
    assert audit(pool, owned=b"", cache=cache).balanced
    assert cache.stats.hit_rate is not None
    assert cache.stats.hit_rate > 0.6
    assert (cache.stats.evicted_pages > 0) == (share < 1)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_whole_edges_find_as_much_as_single_pages(share: float) -> None:
    turns = chat_trace(conversations=60)
    pages = int(share * footprint(turns))
    pool = PageAllocator(pages)
    cache = PrefixCache(pool, PAGE_SIZE)
    replay(turns, pool, cache)
    assert cache.stats.hit_tokens >= tokens_found(turns, pages) > 0


def test_a_smaller_cache_of_single_pages_finds_less() -> None:
    turns = chat_trace(conversations=60)
    ample = footprint(turns)
    assert tokens_found(turns, ample // 8) < tokens_found(turns, ample // 2) < tokens_found(turns, ample)
