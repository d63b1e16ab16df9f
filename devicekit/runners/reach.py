"""Where the keys lie that a decoding token reads: a few long runs of slots, which can be read in place.

A request's pages are mostly neighbours, because they were taken together. Where attention is bound by reading
memory, as on a host, copying the keys of a long context to one place first would cost more than attending to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from devicekit.scheduling.batch import ForwardBatch, Int32, Int64

LONG_RUN = 512
"""Slots from which on a run is read in place; shorter ones are copied together."""

LONG_REACH = 192
"""Keys from which on a token is worth calls of its own; with fewer, it is better computed with others."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The keys of one token, in no particular order."""

    token: int  # its index in the packed batch
    runs: tuple[slice, ...]  # slots that follow one another
    scattered: torch.Tensor | None  # the others, int64; None: there are none


def decoding(batch: ForwardBatch, window: int | None) -> Int64:
    """The sequences of a batch with one token to compute and many keys to read."""
    keys = batch.seq_lens if window is None else np.minimum(batch.seq_lens, window)
    found: Int64 = np.flatnonzero((np.diff(batch.query_start_loc) == 1) & (keys >= LONG_REACH))
    return found


def find_reach(batch: ForwardBatch, sequence: int, first: int, pages: Int32 | None) -> Reach:
    """The keys of a decoding sequence.

    Args:
        first: position of the first key that it sees.
        pages: what stands for each page in layers with pages of their own.
    """
    size, end = batch.page_size, int(batch.seq_lens[sequence])
    base = first // size
    column = batch.table.pages[batch.req_pool_indices[sequence], base : -(-end // size)]
    found = column.astype(np.int64) if pages is None else pages[column].astype(np.int64)
    breaks = np.flatnonzero(np.diff(found) != 1) + 1
    begins = np.concatenate(([0], breaks))
    lows = np.maximum(begins * size, first - base * size)
    highs = np.minimum(np.append(breaks, len(found)) * size, end - base * size)
    slots, counts = found[begins] * size + lows - begins * size, highs - lows
    long = counts >= LONG_RUN
    runs = tuple(
        slice(at, at + count) for at, count in zip(slots[long].tolist(), counts[long].tolist(), strict=True)
    )
    token = int(batch.query_start_loc[sequence])
    if long.all():
        return Reach(token, runs, None)
    slots, counts = slots[~long], counts[~long]
    ends = np.cumsum(counts)
    single = np.arange(ends[-1]) + np.repeat(slots - (ends - counts), counts)
    return Reach(token, runs, torch.from_numpy(single))
