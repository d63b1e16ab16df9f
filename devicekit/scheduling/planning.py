"""Which tokens the next forward pass computes: every running request's next one, and chunks of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from devicekit.scheduling.adjusting import adjustments
from devicekit.scheduling.batch import ForwardBatch, Int32, Int64
from devicekit.scheduling.constraining import token_masks
from devicekit.scheduling.kv_cache.layers import Chunk
from devicekit.scheduling.request import Request
from devicekit.scheduling.reservation import NewTokenRatio
from devicekit.scheduling.scoring import fill_wishes, positions_at_once
from devicekit.scheduling.state import SchedulerState

# A pass that fails costs a synchronisation and two attempts: this many good ones make up for it.
_PASSES_BEFORE_GROWTH = 32


@dataclass(slots=True)
class Plan:
    """One forward pass."""

    decoding: int  # columns of the running batch
    chunks: list[Chunk]


class Planner:
    """Admits waiting requests and cuts prompts into chunks that fit the token budget."""

    def __init__(self, state: SchedulerState, ratio: NewTokenRatio, max_batch_tokens: int) -> None:
        self._state = state
        self._requests = state.requests
        self._kv = state.kv
        self._ratio = ratio
        self._max_batch_tokens = max_batch_tokens
        self._limit = max_batch_tokens  # smaller for a while after the device ran out of memory
        self._passes = 0  # that succeeded at this limit
        self._scores_at_once = self._scores_left = positions_at_once(state.runner.limits.vocab_size)

    def halve(self, tokens: int) -> int:
        """After a pass of ``tokens`` ran out of memory: the most to plan from now on, or 0 if it was one."""
        self._limit = tokens // 2 or 1
        self._passes = 0
        return tokens // 2

    def succeeded(self) -> None:
        """A pass went through. After some of them, larger ones are planned again."""
        if self._limit == self._max_batch_tokens:
            return
        self._passes += 1
        if self._passes == _PASSES_BEFORE_GROWTH:
            self._limit = min(self._max_batch_tokens, self._limit * 2)
            self._passes = 0

    def plan(self) -> Plan:
        """Choose the next pass. Running requests come first, then prompts that have begun, then new ones."""
        requests = self._requests
        plan = Plan(len(requests.running.requests), [])
        self._scores_left = self._scores_at_once
        budget = self._limit - plan.decoding
        for request in requests.prefilling:
            budget = self._take_chunk(plan, request, budget)
        if budget > 0 and requests.waiting and self._state.gate.admitting:
            self._admit_waiting(plan, budget)
        return plan

    def _admit_waiting(self, plan: Plan, budget: int) -> None:
        requests = self._requests
        requests.waiting.arrange()
        remaining = requests.running.remaining_tokens
        for begun in requests.prefilling:
            remaining += begun.limit - begun.total
        while budget > 0 and (request := requests.waiting.first()) is not None:
            remaining += request.limit - request.total
            if request.group is not None and self._is_being_computed(request.group):
                return
            if not self._admit(request, remaining):
                return
            budget = self._take_chunk(plan, request, budget)

    def _is_being_computed(self, group: str) -> bool:
        """Whether one of the group computes their prompt now, who will share it when it is done."""
        prefilling = self._requests.prefilling
        return self._kv.prefix is not None and any(one.group == group for one in prefilling)

    def _take_chunk(self, plan: Plan, request: Request, budget: int) -> int:
        start = request.computed
        count = min(self._kv.computable(request), budget)
        if request.scored is not None:
            count = self._take_scored(request, count)
        if count > 0:
            plan.chunks.append((request, start, start + count))
        return budget - count

    def _take_scored(self, request: Request, count: int) -> int:
        """As many of ``count`` tokens as do not have more prompt positions scored in this pass than it may."""
        first = max(request.computed, request.scored or 0)
        count = min(count, max(0, first - request.computed) + self._scores_left)
        last = min(request.computed + count, len(request.prompt) - 1)
        self._scores_left -= max(0, last - first)
        return count

    def _admit(self, request: Request, remaining: int) -> bool:
        """Give a request its row and pages.

        Args:
            remaining: output tokens that it and everything that has pages may still produce; a share of their
                pages stays free. Alone it needs no such reserve: nothing else will ever free anything for it.
        """
        requests, kv = self._requests, self._kv
        holders = requests.holding_kv
        spare = 0
        if holders:
            remaining = kv.remaining_tokens(remaining, holders + 1)
            spare = kv.pages_for(int(remaining * self._ratio.value))
        if not kv.allocate(request, requests.namespace(request), spare):
            return False
        requests.start(request)
        return True


class BatchBuilder:
    """Lays a plan out as the flat arrays that a runner reads.

    The decoding tokens are where they are, in the running batch's columns; the chunks go behind them.
    """

    def __init__(self, state: SchedulerState, max_running: int, max_batch_tokens: int) -> None:
        columns, table = state.running.columns, state.kv.table
        cells = columns.cells
        most = max_running + max_batch_tokens
        self._state = state
        self._columns = columns
        self._width = table.tokens_per_row
        self._pages_per_row = table.pages_per_row
        self._count: Int32 = np.arange(max(most + 1, self._width), dtype=np.int32)
        self._starts, self._wanted = np.empty((2, most + 1), np.int32)
        self._page_size = np.array(state.kv.page_size, np.int64)  # numpy takes longer to make one of a number
        self._offsets = np.arange(state.kv.page_size, dtype=np.int64)
        # Pages that the tokens of a pass are in: whole ones, and two that are not for each chunk.
        pages = max_batch_tokens // state.kv.page_size + 2 * max_running
        self._expanded: Int64 = np.empty((pages, state.kv.page_size), np.int64)
        self._decoding: dict[int, ForwardBatch] = {}  # plain ones without chunks, by their number of columns
        # The same memory once more: for short runs, copying between memoryviews costs half of numpy.
        self._cells = _Cells(
            numbers=self._count.data,
            starts=self._starts.data,
            wanted=self._wanted.data,
            tokens=cells.last,
            positions=cells.position,
            slots=cells.slot,
            rows=cells.row,
            lengths=cells.length,
            known=table.tokens.reshape(-1).data,
            table=table.pages.reshape(-1).data,
            expanded=self._expanded.reshape(-1).data,
        )

    def build(self, plan: Plan) -> ForwardBatch:
        """The batch of a plan. Its arrays may share memory with the scheduler's: they are good for one pass."""
        running, count = self._state.running, plan.decoding
        requests = self._state.requests
        plain = running.sampling.idle and not (
            self._state.kv.fills or requests.adjusted or requests.constrained
        )
        if plan.chunks:
            batch = self._with_chunks(plan)
            if plain and True not in [request.listed for request, _, _ in plan.chunks]:
                return batch
        elif plain:
            # All that changes from step to step is what the arrays hold.
            return self._decoding.get(count) or self._decoding.setdefault(count, self._decode(count))
        else:
            batch = self._decode(count)
        joining = [request for request, _, end in plan.chunks if end == request.total]
        self._state.kv.fill(batch, plan.chunks)
        running.sampling.fill(batch, running.view.positions, joining)
        known = self._state.kv.table.tokens
        fill_wishes(batch, requests, plan.chunks, known)
        if requests.adjusted:
            batch.adjustments = adjustments(requests, joining, known)
        if requests.constrained:
            batch.masks = token_masks(requests, joining, self._state.runner.limits.vocab_size)
        return batch

    def _decode(self, count: int) -> ForwardBatch:
        return self._cut(count, count, self._count, self._count[:count])

    def _cut(self, tokens: int, sequences: int, starts: Int32, wanted: Int32) -> ForwardBatch:
        columns, kv = self._columns, self._state.kv
        return ForwardBatch(  # in order: by name takes longer
            columns.tokens[:tokens],
            columns.positions[:tokens],
            columns.slots[:tokens],
            columns.rows[:sequences],
            starts[: sequences + 1],
            columns.lengths[:sequences],
            kv.table,
            kv.page_size,
            wanted,
        )

    def _with_chunks(self, plan: Plan) -> ForwardBatch:
        count, starts, wanted, tokens, positions, slots, rows, lengths, known, table, expanded = self._cells
        width, pages_per_row, page_size = self._width, self._pages_per_row, len(self._offsets)
        column = at = completed = plan.decoding
        starts[: at + 1] = count[: at + 1]
        wanted[:at] = count[:at]
        pages: list[memoryview] = []  # that the chunks write to
        runs: list[tuple[int, int, int]] = []  # where a chunk's tokens are; their slots among those pages'
        written = 0  # slots of those pages
        for request, start, end in plan.chunks:
            row, stop = request.row, at + end - start
            own = row * width
            tokens[at:stop] = known[own + start : own + end]
            positions[at:stop] = count[start:end]
            first, last = start // page_size, -(-end // page_size)
            own = row * pages_per_row
            pages.append(table[own + first : own + last])
            runs.append((at, stop, written + start - first * page_size))
            written += (last - first) * page_size
            rows[column] = row
            lengths[column] = end
            if end == request.total:
                wanted[completed] = stop - 1
                completed += 1
            column += 1
            starts[column] = at = stop
        bases = np.frombuffer(b"".join(pages), np.int32) * self._page_size
        np.add(bases[:, None], self._offsets, self._expanded[: len(bases)])
        for start, stop, slot in runs:
            slots[start:stop] = expanded[slot : slot + stop - start]
        return self._cut(at, column, self._starts, self._wanted[:completed])


class _Cells(NamedTuple):
    """The builder's arrays as memoryviews, of int32 where nothing else is said."""

    numbers: memoryview  # 0, 1, 2, ...
    starts: memoryview
    wanted: memoryview
    tokens: memoryview
    positions: memoryview
    slots: memoryview  # of int64
    rows: memoryview
    lengths: memoryview
    known: memoryview  # tokens of all rows
    table: memoryview
    expanded: memoryview  # of int64
