"""What pages, rows and cached prefixes cost. Peers and targets: the best published engine for each case."""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from time import process_time

import numpy as np
import numpy.typing as npt

from devicekit.devtools.bench.chat import PAGE_SIZE, chat_trace, replay
from devicekit.devtools.bench.harness import Peer, Row, Yardstick, time_us, timed_row
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.rows import RequestTable

Int32 = npt.NDArray[np.int32]

_SMALL, _LARGE = 10_000, 1_000_000
_SHARED, _OWN = 64, 16  # pages of a prompt that are shared, and its own


def run() -> list[Row]:
    """Every case; about a minute."""
    gc.collect()
    gc.freeze()
    try:
        return [*_allocation(), *_ids(), *_resets(), *_trees(), *_chat(), *_bytes()]
    finally:
        gc.unfreeze()


def _allocation() -> list[Row]:
    vllm, sglang = "vLLM", "SGLang"
    peers = {
        (1, _SMALL): (Peer(vllm, 0.50), 3.0),
        (1, _LARGE): (Peer(vllm, 0.50), 3.0),
        (16, _SMALL): (Peer(vllm, 2.6), 6.0),
        (16, _LARGE): (Peer(vllm, 2.6), 6.0),
        (256, _SMALL): (Peer(sglang, 3.4), 7.0),
        (256, _LARGE): (Peer(sglang, 15.5), 30.0),
        (4096, _SMALL): (Peer(sglang, 3.6), 4.0),
        (4096, _LARGE): (Peer(sglang, 16.4), 15.0),
    }
    rows: list[Row] = []
    times: dict[tuple[int, int], float] = {}
    for (count, size), (peer, target) in peers.items():
        pool = _used_pool(size)
        statement = "give(take(count))" if count > 1 else "give_one(take_one())"
        names = {name: getattr(pool, name) for name in ("take", "give", "take_one", "give_one")}
        us = times[count, size] = time_us(statement, names | {"count": count})
        case = f"take+give {count:,} page{'s' if count > 1 else ''}, pool {size:,}"
        rows.append(timed_row(case, us, peer=peer, target=target, yardstick=Yardstick.LIST))
    for count in (1, 16, 256, 4096):
        growth = times[count, _LARGE] / times[count, _SMALL]
        rows.append(Row(f"take+give {count:,}: pool {_LARGE:,} against {_SMALL:,}", growth, "x", target=1.5))
    return rows


def _ids() -> list[Row]:
    table, slots = RequestTable(1024, 64), PageAllocator(1024)
    row_us = time_us("give(take())", {"give": table.give_one, "take": table.take_one})
    slot_us = time_us("give(take())", {"give": slots.give_one, "take": slots.take_one})
    cells = np.arange(1, 65) * table.pages_per_row
    table.follow()
    return [
        timed_row("request row in and out", row_us, peer=Peer("SGLang", 7.2), target=15),
        timed_row("state slot in and out", slot_us, peer=Peer("SGLang", 2.9), target=15),
        timed_row(
            "mark 64 cells as changed", time_us("mark(cells)", {"mark": table.mark_cells, "cells": cells})
        ),
    ]


def _resets() -> list[Row]:
    sglang = Peer("SGLang", 288)
    rows: list[Row] = []
    for size in (_SMALL, _LARGE):
        us = time_us("reset()", {"reset": _used_pool(size).reset})
        peer, target = (sglang, 40.0) if size == _LARGE else (None, None)
        rows.append(timed_row(f"reset a pool of {size:,}", us, peer=peer, target=target))
        build = time_us("PageAllocator(size)", {"PageAllocator": PageAllocator, "size": size})
        rows.append(timed_row(f"build a pool of {size:,}", build))
    for tokens in (90_000, 900_000):
        samples = []
        for _ in range(5):
            _, cache, _ = _forest(tokens // (PAGE_SIZE * (_OWN + 1)), spare=0)
            started = process_time()
            cache.reset()
            samples.append((process_time() - started) * 1e6)
        peer, target = (Peer("SGLang radix", 194), 5.0) if tokens == 900_000 else (None, None)
        us = statistics.median(samples)
        rows.append(timed_row(f"flush {tokens:,} cached tokens", us, peer=peer, target=target))
    return rows


def _trees() -> list[Row]:
    matches, evictions = [], []
    for leaves, sglang_us, nano_us in ((1_000, 5.7, 9.5), (10_000, 6.4, 11.0), (100_000, 5.7, 14.4)):
        pool, cache, keys = _forest(leaves, spare=0)
        samples = []
        for _ in range(9):
            started = process_time()
            for key in keys:
                cache.match(key)
            samples.append((process_time() - started) / len(keys) * 1e6)
        peer = Peer("SGLang Rust", sglang_us)
        us = statistics.median(samples)
        matches.append(
            timed_row(f"match {_SHARED + _OWN} pages, {leaves:,} leaves", us, peer=peer, target=2.5)
        )
        samples = []
        for _ in range(12):
            started = process_time()
            for _ in range(50):
                if pool.take(_OWN) is None:
                    cache.evict(_OWN)
                    pool.take(_OWN)
            samples.append((process_time() - started) / 50 * 1e6)
        us = statistics.median(samples)
        case = f"evict and take {_OWN} pages, {leaves:,} leaves"
        evictions.append(timed_row(case, us, peer=Peer("nano-vllm", nano_us), target=2.5))
    growth = evictions[-1].value / evictions[0].value
    flat = Row("evict: 100,000 leaves against 1,000 (cache misses)", growth, "x")
    return [*matches, *evictions, flat]


def _chat() -> list[Row]:
    turns = chat_trace()
    ample_pages = _chat_footprint()
    rows: list[Row] = []
    for name, pages, peer in (
        ("ample", ample_pages, Peer("SGLang Rust", 119)),
        ("a quarter of it", ample_pages // 4, Peer("SGLang Rust", 142)),
    ):
        samples = []
        hit_rate = None
        for _ in range(5):
            pool = PageAllocator(pages)
            cache = PrefixCache(pool, PAGE_SIZE)
            samples.append(replay(turns, pool, cache))
            hit_rate = cache.stats.hit_rate
        case = f"chat turn, capacity {name}"
        rows.append(timed_row(case, statistics.median(samples), peer=peer, target=10))
        rows.append(Row(f"{case}: tokens found", 100 * (hit_rate or 0.0), "%"))
    return rows


def _bytes() -> list[Row]:
    turns = chat_trace()
    pages = _chat_footprint()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        pool = _used_pool(_LARGE)
        used, _ = tracemalloc.get_traced_memory()
        per_page = (used - before) / _LARGE
        del pool
        before, _ = tracemalloc.get_traced_memory()
        cache = PrefixCache(PageAllocator(pages), PAGE_SIZE)
        replay(turns, cache.allocator, cache)
        used, _ = tracemalloc.get_traced_memory()
        per_cached = (used - before) / cache.total
    finally:
        tracemalloc.stop()
    return [
        Row("allocator, per page", per_page, "B", target=5),
        Row(f"cached page of {PAGE_SIZE} tokens, allocator included", per_cached, "B", target=90),
    ]


def _chat_footprint() -> int:
    """Pages that hold the whole chat trace."""
    pool = PageAllocator(_LARGE)
    replay(chat_trace(), pool, PrefixCache(pool, PAGE_SIZE))
    return pool.in_use + 256  # the last turn's own tail


def _used_pool(size: int) -> PageAllocator:
    """A pool whose every page has been out once: nothing is fresh, as after an hour of work."""
    pool = PageAllocator(size)
    pool.give(pool.take(size) or b"")
    return pool


def _forest(leaves: int, *, spare: int) -> tuple[PageAllocator, PrefixCache, list[bytes]]:
    """A cache of `leaves` prompts, a hundred to a shared beginning; and some of the prompts, shuffled."""
    rng = np.random.default_rng(5)
    shared = rng.integers(0, 50_000, (max(1, leaves // 100), _SHARED * PAGE_SIZE), dtype=np.int32)
    pool = PageAllocator(len(shared) * _SHARED + leaves * _OWN + spare)
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
