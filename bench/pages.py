"""What pages, rows and state slots cost: in and out, as token slots, building, resetting, and in bytes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt

from bench.harness import Row, Timing, Yardstick, growth_row, measure, timed_row
from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable

_POOLS = (10_000, 100_000, 1_000_000)
_SMALL, _LARGE = _POOLS[0], _POOLS[-1]
_BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
_FLAT = 1.5  # times more that the largest pool may cost than the smallest

_EXPANDED = [(page_size, size) for page_size in (1, 16, 64) for size in (_SMALL, _LARGE)]


def run() -> list[Row]:
    """Every case."""
    return [*_in_and_out(), *_expanded(), *_ids(), *_resets(), _bytes()]


def _in_and_out() -> list[Row]:
    rows: list[Row] = []
    times: dict[tuple[int, int], Timing] = {}
    for count in _BATCHES:
        for size in _POOLS:
            pool = used_pool(size)
            statement = "give(take(count))" if count > 1 else "give_one(take_one())"
            names = {name: getattr(pool, name) for name in ("take", "give", "take_one", "give_one")}
            timing = measure(statement, names | {"count": count}, Yardstick.LIST)
            times[count, size] = timing
            case = f"take+give {count:,} page{'s' if count > 1 else ''}, pool {size:,}"
            curve = "take+give 256 pages, by pages of the pool" if count == 256 else None
            rows.append(timed_row(case, timing, curve=curve, at=size))
    for count in _BATCHES:
        case = f"take+give {count:,}: pool {_LARGE:,} against {_SMALL:,}"
        rows.append(growth_row(case, times[count, _SMALL], times[count, _LARGE], _FLAT))
    return rows


def _expanded() -> list[Row]:
    rows: list[Row] = []
    times: dict[int, Timing] = {}
    for page_size, size in _EXPANDED:
        pool, expand = used_pool(size), SlotExpander(page_size, most_pages=16)
        names = {"take": pool.take, "give": pool.give, "slots": expand.slots}
        timing = times[size] = measure("pages = take(16); slots(pages); give(pages)", names)
        case = f"take+give 16 pages of {page_size} as token slots, pool {size:,}"
        rows.append(timed_row(case, timing))
        if size == _LARGE:
            case = f"16 pages of {page_size} as slots: pool {_LARGE:,} against {_SMALL:,}"
            rows.append(growth_row(case, times[_SMALL], timing, _FLAT))
    return rows


class SlotExpander:
    """Token slots of pages, in a buffer that is used again: for kernels that know slots and not pages."""

    def __init__(self, page_size: int, most_pages: int) -> None:
        self._size = page_size
        self._within = np.arange(page_size)
        self._slots = np.empty((most_pages, page_size), np.int64)

    def slots(self, pages: bytes) -> npt.NDArray[np.int64]:
        """``[pages * page_size]``, good until the next call."""
        first = np.frombuffer(pages, np.int32).astype(np.int64)
        if self._size == 1:
            return first
        first *= self._size
        slots = self._slots[: len(first)]
        np.add(first[:, None], self._within, out=slots)
        return slots.reshape(-1)


def _ids() -> list[Row]:
    table, slots = RequestTable(1024, 64), PageAllocator(1024)
    row = measure("give(take())", {"give": table.give_one, "take": table.take_one})
    slot = measure("give(take())", {"give": slots.give_one, "take": slots.take_one})
    table.subscribe()
    cells = np.arange(1, 65) * table.pages_per_row
    mark = measure("mark(cells)", {"mark": table.mark_cells_dirty, "cells": cells})
    return [
        timed_row("request row in and out", row),
        timed_row("state slot in and out", slot),
        timed_row("mark 64 cells as changed", mark),
    ]


def _resets() -> list[Row]:
    rows: list[Row] = []
    resets: dict[int, Timing] = {}
    builds: dict[int, Timing] = {}
    for size in _POOLS:
        resets[size] = measure("reset()", {"reset": used_pool(size).reset})
        builds[size] = measure("PageAllocator(size)", {"PageAllocator": PageAllocator, "size": size})
        curve = "reset, by pages of the pool"
        rows.append(timed_row(f"reset a pool of {size:,}", resets[size], curve=curve, at=size))
        rows.append(timed_row(f"build a pool of {size:,}", builds[size]))
    for verb, times in (("reset", resets), ("build", builds)):
        case = f"{verb}: pool {_LARGE:,} against {_SMALL:,}"
        rows.append(growth_row(case, times[_SMALL], times[_LARGE], _FLAT))
    return rows


def _bytes() -> Row:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        pool = used_pool(_LARGE)
        used, _ = tracemalloc.get_traced_memory()
        per_page = (used - before) / pool.num_pages
    finally:
        tracemalloc.stop()
    return Row("allocator, per page", per_page, "B", target=5)


def used_pool(size: int) -> PageAllocator:
    """A pool whose every page has been out once: nothing is fresh, as after an hour of work."""
    pool = PageAllocator(size)
    pool.give(pool.take(size) or b"")
    return pool
