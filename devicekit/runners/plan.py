"""Which keys each token of a batch reads: built once for a step, used by every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from devicekit.memory.kv import PADDING_SLOT
from devicekit.memory.mirror import upload
from devicekit.runners.reach import Reach, decoding, find_reach
from devicekit.scheduling.batch import ForwardBatch, Int32, Int64

MAX_CELLS = 1 << 22
"""Bound on queries times keys of one segment: a long prompt is cut here, and its mask stays in megabytes."""

_CELLS_OF_COPY = 1 << 18
"""The same for a group where calls cost little: what it copies stays in the caches."""

PADDING_ALLOWANCE = 1.5
"""How many times the real cells a group of segments may hold before it is split."""


@dataclass(slots=True)
class Segments:
    """``G`` runs of queries computed together, padded to ``Q`` queries and ``L`` keys each."""

    tokens: torch.Tensor  # [G, Q] index of each query in the packed batch; padding repeats the last one
    key_slots: torch.Tensor  # [G, L] KV slot of each visible key; the padding slot where there is none
    visible: torch.Tensor  # [G, 1, Q, L] bool
    _masks: dict[int, torch.Tensor] = field(default_factory=dict)

    def mask(self, shared: int) -> torch.Tensor:
        """``visible`` for ``shared`` query heads folded into the query rows: [G, 1, shared * Q, L]."""
        if shared == 1 or self.visible.shape[2] == 1:
            return self.visible  # one row serves all: it broadcasts
        if shared not in self._masks:
            self._masks[shared] = self.visible.repeat(1, 1, shared, 1)
        return self._masks[shared]


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of consecutive queries of one sequence, one entry per run."""

    row: Int64  # request row
    token: Int64  # index of the first query in the packed batch
    position: Int64  # position of the first query in its sequence
    queries: Int64

    def take(self, index: Int64) -> _Runs:
        return _Runs(self.row[index], self.token[index], self.position[index], self.queries[index])


@dataclass(frozen=True, slots=True)
class _Sight:
    """Which keys a token reads in some layers, and how it may read them."""

    window: int | None
    chunked: bool
    in_order: bool

    def first_keys(self, positions: Int64) -> Int64:
        """The first key that a token at each position reads."""
        if self.window is None:
            return np.zeros_like(positions)
        if self.chunked:
            return positions // self.window * self.window
        return np.maximum(positions - self.window + 1, 0)


class AttentionPlan:
    """The segments of a batch, for each window that the model's layers use.

    Layers with a window may have pages of their own: then their segments name slots of those.
    """

    def __init__(
        self, batch: ForwardBatch, device: torch.device, pages: torch.Tensor, *, in_place: bool = False
    ) -> None:
        """Segments are built when they are first asked for.

        Args:
            pages: the batch's request table on the device, int32 [rows, pages_per_row].
            in_place: tokens with many keys read them where they are; for devices on which a call costs little.
        """
        self._in_place = in_place
        self._longest = int(batch.seq_lens.max(initial=0))
        self._batch = batch
        self._device = device
        self._pages = pages
        self._segments: dict[_Sight, list[Segments]] = {}
        self._reaches: dict[_Sight, list[Reach]] = {}

    def segments(
        self, window: int | None, *, chunked: bool = False, in_order: bool = False
    ) -> list[Segments]:
        """Segments that with `reaches` hold every token of the batch once, for layers with this window.

        Args:
            chunked: windows do not slide: a token sees what lies in the same multiple of ``window`` as itself.
            in_order: no token may read its keys in place, which is in no particular order.
        """
        sight = _Sight(self._effective(window), chunked, in_order)
        if sight not in self._segments:
            runs = _cut(self._batch, sight.window)
            in_place = self._in_place and not in_order
            if in_place:
                reaches = self.reaches(window, chunked=chunked)
                alone = np.isin(runs.token, [reach.token for reach in reaches])
                runs = runs.take(np.flatnonzero(~alone))
            keys = sight.first_keys(runs.position)
            counts = runs.position + runs.queries - keys
            most = _CELLS_OF_COPY if in_place else 4 * MAX_CELLS
            self._segments[sight] = [
                self._build(runs.take(group), keys[group], sight)
                for group in _group(runs.queries, counts, most)
            ]
        return self._segments[sight]

    def reaches(self, window: int | None, *, chunked: bool = False, in_order: bool = False) -> list[Reach]:
        """The tokens that read their keys in place, in layers with this window; arguments as for `segments`."""
        sight = _Sight(self._effective(window), chunked, in_order)
        if sight not in self._reaches:
            batch = self._batch
            pages = None if sight.window is None else batch.window_pages
            chosen = (
                decoding(batch, sight.window) if self._in_place and not in_order else np.zeros(0, np.int64)
            )
            firsts = sight.first_keys(batch.seq_lens[chosen].astype(np.int64) - 1)
            self._reaches[sight] = [
                find_reach(batch, one, first, pages)
                for one, first in zip(chosen.tolist(), firsts.tolist(), strict=True)
            ]
        return self._reaches[sight]

    def _effective(self, window: int | None) -> int | None:
        if window is None or window < self._longest:
            return window
        # No window at all; but the keys are elsewhere if the layer has pages of its own.
        return None if self._batch.window_pages is None else self._longest

    def _build(self, runs: _Runs, first_key: Int64, sight: _Sight) -> Segments:
        window = sight.window
        ends = runs.position + runs.queries
        offset = np.minimum(np.arange(runs.queries.max()), runs.queries[:, None] - 1)
        elsewhere = None if window is None else self._batch.window_pages
        first_page = first_key // self._batch.page_size
        tokens, positions, first, end, of_run = to_device(
            (
                runs.token[:, None] + offset,
                runs.position[:, None] + offset,
                first_key[:, None],
                ends[:, None],
                runs.row[:, None]
                if elsewhere is None
                else self._pages_in_reach(runs, first_page, ends, elsewhere),
            ),
            self._device,
        )
        # From here on the device works: keys are many more than what was uploaded.
        size = self._batch.page_size
        key_positions = first + torch.arange(int((ends - first_key).max()), device=self._device)
        column = key_positions // size
        if elsewhere is not None:
            page = of_run.gather(1, (column - first // size).clamp_(max=of_run.shape[1] - 1))
        else:
            width = self._pages.shape[1]
            page = self._pages.view(-1)[of_run * width + column.clamp_(max=width - 1)].long()
        slots = torch.where(key_positions < end, page * size + key_positions % size, PADDING_SLOT)
        visible = key_positions[:, None, :] <= positions[:, :, None]
        if window is not None and sight.chunked:
            visible &= key_positions[:, None, :] // window == positions[:, :, None] // window
        elif window is not None:
            visible &= key_positions[:, None, :] > positions[:, :, None] - window
        return Segments(tokens, slots, visible.unsqueeze(1))

    def _pages_in_reach(self, runs: _Runs, first_page: Int64, ends: Int64, pages: Int32) -> Int64:
        """What ``pages`` has for the pages of each run from its first one on: [G, P]; 0 behind its end."""
        last_page = (ends - 1) // self._batch.page_size
        columns = first_page[:, None] + np.arange((last_page - first_page).max() + 1)
        exists = columns <= last_page[:, None]
        full = self._batch.table.pages[runs.row[:, None], np.where(exists, columns, 0)]
        found: Int64 = np.where(exists, pages[np.where(exists, full, 0)], 0).astype(np.int64)
        return found


def window_slots(batch: ForwardBatch, pages: Int32) -> Int64:
    """The slot that each token is written to, in layers with pages of their own."""
    page, offset = np.divmod(batch.slot_mapping, batch.page_size)
    slots: Int64 = pages[page].astype(np.int64) * batch.page_size + offset
    return slots


def to_device(arrays: Sequence[Int32 | Int64], device: torch.device) -> list[torch.Tensor]:
    """Several small arrays in a single copy, as int64; nobody waits for it."""
    flat = upload(np.concatenate([array.ravel() for array in arrays], dtype=np.int64), device)
    parts = torch.split(flat, [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _cut(batch: ForwardBatch, window: int | None) -> _Runs:
    """The batch's sequences as runs whose queries times keys stay within ``MAX_CELLS``."""
    starts = batch.query_start_loc.astype(np.int64)
    queries = np.diff(starts)
    lengths = batch.seq_lens.astype(np.int64)
    rows = batch.req_pool_indices.astype(np.int64)
    keys = lengths if window is None else np.minimum(lengths, queries + window - 1)
    per_run = np.maximum(MAX_CELLS // np.maximum(keys, 1), 1)
    runs = -(-queries // per_run)  # a sequence without tokens gives no run
    owner = np.repeat(np.arange(len(rows)), runs)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(runs) - runs, runs)
    skipped = nth * per_run[owner]
    return _Runs(
        row=rows[owner],
        token=starts[:-1][owner] + skipped,
        position=(lengths - queries)[owner] + skipped,
        queries=np.minimum(queries[owner] - skipped, per_run[owner]),
    )


def _group(queries: Int64, keys: Int64, most: int) -> list[Int64]:
    """Group runs of similar shape: few kernels, little padding, and at most so many cells in each."""
    order = np.lexsort((keys, queries))
    groups: list[Int64] = []
    begin = 0
    while begin < len(order):
        rest = order[begin:]
        widest, longest = np.maximum.accumulate(queries[rest]), np.maximum.accumulate(keys[rest])
        padded = np.arange(1, len(rest) + 1) * widest * longest
        real = np.cumsum(queries[rest] * keys[rest])
        fits = (padded <= PADDING_ALLOWANCE * real) & (padded <= most)
        count = int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 1
        groups.append(rest[:count])
        begin += count
    return groups
