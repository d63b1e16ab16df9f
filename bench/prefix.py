"""What the prefix cache costs: matching, evicting and flushing as it grows, and bytes for each cached page."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np

from bench.chat import PAGE_SIZE, chat_trace, footprint, replay
from bench.harness import Row, Timing, cpu_seconds, growth_row, measure_by, timed_row
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache

_SHARED, _OWN = 64, 16  # pages of a prompt that are shared, and its own
_LEAVES = (1_000, 10_000, 100_000)
_FEW, _MANY = 1_000, 100_000
# A hundredfold cache lies in slower memory: what a cost that does not follow its size may still grow by.
_FLAT = 2.5


def run() -> list[Row]:
    """Every case."""
    gc.collect()
    gc.freeze()  # a collection of a hundred thousand nodes is not what a match costs
    try:
        return [*_trees(), *_flushes(), _bytes()]
    finally:
        gc.unfreeze()


def _trees() -> list[Row]:
    rows: list[Row] = []
    matches: dict[int, Timing] = {}
    evictions: dict[int, Timing] = {}
    for leaves in _LEAVES:
        pool, cache, keys = _forest(leaves)
        match = matches[leaves] = _matching(cache, keys)
        evict = evictions[leaves] = _evicting(pool, cache)
        for case, timing in (
            (f"match {_SHARED + _OWN} pages", match),
            (f"evict and take {_OWN} pages", evict),
        ):
            curve = f"{case}, by leaves of the cache"
            rows.append(timed_row(f"{case}, {leaves:,} leaves", timing, curve=curve, at=leaves))
    for verb, times in (("match", matches), ("evict", evictions)):
        case = f"{verb}: {_MANY:,} leaves against {_FEW:,}"
        rows.append(growth_row(case, times[_FEW], times[_MANY], _FLAT))
    return rows


def _matching(cache: PrefixCache, keys: list[bytes]) -> Timing:
    def once() -> float:
        def match_all() -> None:
            for key in keys:
                cache.match(key)

        return cpu_seconds(match_all) / len(keys)

    return measure_by(once)


def _evicting(pool: PageAllocator, cache: PrefixCache) -> Timing:
    def take() -> None:
        if pool.take(_OWN) is None:
            cache.evict(_OWN)
            pool.take(_OWN)

    return measure_by(lambda: cpu_seconds(take, 50), samples=12)


def _flushes() -> list[Row]:
    rows: list[Row] = []
    flushes: list[Timing] = []
    for tokens in (90_000, 900_000):

        def once(tokens: int = tokens) -> float:
            _, cache, _ = _forest(tokens // (PAGE_SIZE * (_OWN + 1)))
            return cpu_seconds(cache.reset)

        flushes.append(measure_by(once, samples=7))
        rows.append(timed_row(f"flush {tokens:,} cached tokens", flushes[-1]))
    # Once per flush a cold cache: the spread is wide, so a target would be missed by chance.
    rows.append(growth_row("flush: 900,000 tokens against 90,000", flushes[0], flushes[1], None))
    return rows


def _bytes() -> Row:
    turns = chat_trace()
    pages = footprint(turns)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        cache = PrefixCache(PageAllocator(pages), PAGE_SIZE)
        replay(turns, cache.allocator, cache)
        used, _ = tracemalloc.get_traced_memory()
        per_page = (used - before) / cache.total
    finally:
        tracemalloc.stop()
    return Row(f"cached page of {PAGE_SIZE} tokens, allocator included", per_page, "B", target=90)


def _forest(leaves: int) -> tuple[PageAllocator, PrefixCache, list[bytes]]:
    """A cache of `leaves` prompts, a hundred to a shared beginning; and some of the prompts, shuffled."""
    rng = np.random.default_rng(5)
    shared = rng.integers(0, 50_000, (max(1, leaves // 100), _SHARED * PAGE_SIZE), dtype=np.int32)
    pool = PageAllocator(len(shared) * _SHARED + leaves * _OWN)
    cache = PrefixCache(pool, PAGE_SIZE)
    keys: list[bytes] = []
    for leaf in range(leaves):
        own = rng.integers(0, 50_000, _OWN * PAGE_SIZE, dtype=np.int32)
        key = np.concatenate((shared[leaf % len(shared)], own)).tobytes()
        match = cache.match(key)
        cache.insert(key, match.pages + (pool.take(_SHARED + _OWN - len(match.pages) // 4) or b""))
        if leaf % max(1, leaves // 1000) == 0:
            keys.append(key)
    rng.shuffle(keys)
    return pool, cache, keys
