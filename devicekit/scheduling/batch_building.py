"""Turns a plan into the flat arrays that a runner reads."""

from __future__ import annotations

import numpy as np

from devicekit.memory import page_ids
from devicekit.memory.cells import flat
from devicekit.scheduling.adjusting import adjustments
from devicekit.scheduling.batch import ForwardBatch, Int32
from devicekit.scheduling.constraining import token_masks
from devicekit.scheduling.planning import Plan
from devicekit.scheduling.scoring import fill_wishes
from devicekit.scheduling.state import SchedulerState


class BatchBuilder:
    """Turns a plan into the flat arrays that a runner reads.

    Decoding tokens stay in the running batch's columns; the tokens of prompt chunks are written behind them.
    """

    def __init__(self, state: SchedulerState, max_running: int, max_batch_tokens: int) -> None:
        table, most = state.kv.table, max_running + max_batch_tokens
        self._kv = state.kv
        self._requests = state.requests
        self._vocab_size = state.runner.limits.vocab_size
        self._columns = state.running.columns
        self._table = table
        self._count: Int32 = np.arange(max(most + 1, table.tokens_per_row), dtype=np.int32)
        self._starts, self._wanted = np.empty((2, most + 1), np.int32)
        self._start_cells, self._wanted_cells = flat(self._starts), flat(self._wanted)
        self._page_cells = flat(table.pages)
        self._number_cells, self._known = flat(self._count), flat(table.tokens)
        self._slots_per_page = np.array(state.kv.page_size, np.int64)
        self._offsets = np.arange(state.kv.page_size, dtype=np.int64)
        self._decoding: dict[int, ForwardBatch] = {}  # plain ones without chunks, by their number of columns

    def build(self, plan: Plan) -> ForwardBatch:
        """The batch of a plan. Its arrays may share memory with the scheduler's, and are valid for one pass."""
        requests, count = self._requests, plan.decoding
        sampling = requests.running.sampling
        plain = sampling.idle and not (self._kv.fills or requests.adjusted or requests.constrained)
        if plan.chunks:
            batch = self._with_chunks(plan)
            if plain and True not in [request.needs_every_step for request, _, _ in plan.chunks]:
                return batch
        elif plain:
            # All that changes from step to step is what the arrays hold.
            return self._decoding.get(count) or self._decoding.setdefault(count, self._decode(count))
        else:
            batch = self._decode(count)
        joining = [request for request, _, end in plan.chunks if end == request.total]
        self._kv.fill(batch, plan.chunks)
        sampling.fill(batch, requests.running.view.positions, joining)
        fill_wishes(batch, requests, plan.chunks, self._table.tokens)
        if requests.adjusted:
            batch.adjustments = adjustments(requests, joining, self._table.tokens)
        if requests.constrained:
            batch.masks = token_masks(requests, joining, self._vocab_size)
        return batch

    def _decode(self, count: int) -> ForwardBatch:
        return self._cut(count, count, self._count, self._count[:count])

    def _cut(self, tokens: int, sequences: int, starts: Int32, wanted: Int32) -> ForwardBatch:
        columns = self._columns
        return ForwardBatch(
            input_ids=columns.tokens[:tokens],
            positions=columns.positions[:tokens],
            slot_mapping=columns.slots[:tokens],
            req_pool_indices=columns.rows[:sequences],
            query_start_loc=starts[: sequences + 1],
            seq_lens=columns.lengths[:sequences],
            table=self._table,
            page_size=self._kv.page_size,
            logits_indices=wanted,
        )

    def _with_chunks(self, plan: Plan) -> ForwardBatch:
        cells, known, numbers = self._columns.cells, self._known, self._number_cells
        size, width, page_width = self._kv.page_size, self._table.tokens_per_row, self._table.pages_per_row
        decoding = at = completed = plan.decoding
        self._start_cells[: decoding + 1] = numbers[: decoding + 1]
        self._wanted_cells[:decoding] = numbers[:decoding]
        pages: list[memoryview] = []  # that the chunks write to
        written: list[
            tuple[int, int, int]
        ] = []  # where a chunk's tokens are; its first slot among those pages'
        slots = 0  # of those pages
        for column, (request, start, end) in enumerate(plan.chunks, decoding):
            row, stop = request.row, at + end - start
            cells.token[at:stop] = known[row * width + start : row * width + end]
            cells.position[at:stop] = numbers[start:end]
            cells.row[column] = row
            cells.length[column] = end
            self._start_cells[column + 1] = stop
            if end == request.total:
                self._wanted_cells[completed] = stop - 1
                completed += 1
            first, last = start // size, -(-end // size)
            pages.append(self._page_cells[row * page_width + first : row * page_width + last])
            written.append((at, stop, slots + start - first * size))
            slots += (last - first) * size
            at = stop
        all_slots = self._slots_of(b"".join(pages))
        for begin, stop, slot in written:
            cells.slot[begin:stop] = all_slots[slot : slot + stop - begin]
        return self._cut(at, decoding + len(plan.chunks), self._starts, self._wanted[:completed])

    def _slots_of(self, pages: bytes) -> memoryview:
        """Every slot of these pages, in order."""
        bases = page_ids.as_array(pages) * self._slots_per_page
        return flat(bases[:, None] + self._offsets)
