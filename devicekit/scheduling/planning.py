"""Which tokens the next forward pass computes: every running request's next one, and chunks of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from devicekit.scheduling.adjusting import adjustments
from devicekit.scheduling.batch import ForwardBatch, Int32, Int64
from devicekit.scheduling.request import Request
from devicekit.scheduling.reservation import NewTokenRatio
from devicekit.scheduling.state import SchedulerState

# A pass that fails costs a synchronisation and two attempts: this many good ones make up for it.
_PASSES_BEFORE_GROWTH = 32


class Chunk(NamedTuple):
    """Tokens ``start`` to ``end - 1`` of a request whose earlier tokens are computed."""

    request: Request
    start: int
    end: int

    @property
    def completes(self) -> bool:
        return self.end == self.request.total


@dataclass(slots=True)
class Plan:
    """One forward pass."""

    decoding: int  # columns of the running batch
    chunks: list[Chunk] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decoding or self.chunks)


class Planner:
    """Admits waiting requests and cuts prompts into chunks that fit the token budget."""

    def __init__(self, state: SchedulerState, ratio: NewTokenRatio, max_batch_tokens: int) -> None:
        self._state = state
        self._ratio = ratio
        self._max_batch_tokens = max_batch_tokens
        self._window = state.runner.limits.window
        self._limit = max_batch_tokens  # smaller for a while after the device ran out of memory
        self._passes = 0  # that succeeded at this limit

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
        state = self._state
        plan = Plan(len(state.running))
        budget = self._limit - plan.decoding
        for request in state.prefilling:
            budget = self._take_chunk(plan, request, budget)
        if budget > 0 and state.admitting and len(state.waiting):
            self._admit_waiting(plan, budget)
        return plan

    def _admit_waiting(self, plan: Plan, budget: int) -> None:
        state = self._state
        state.waiting.arrange()
        to_come = state.running.to_come()
        for request in state.prefilling:
            to_come += request.limit - request.total
        while budget > 0 and len(state.waiting):
            request = state.waiting.first()
            to_come += request.limit - request.total
            if request.group is not None and self._is_being_computed(request.group):
                return
            if not self._admit(request, to_come):
                return
            budget = self._take_chunk(plan, request, budget)

    def _is_being_computed(self, group: str) -> bool:
        """Whether one of the group computes their prompt now, who will share it when it is done."""
        state = self._state
        return state.kv.prefix is not None and any(one.group == group for one in state.prefilling)

    @staticmethod
    def _take_chunk(plan: Plan, request: Request, budget: int) -> int:
        count = min(budget, request.total - request.computed)
        if count > 0:
            plan.chunks.append(Chunk(request, request.computed, request.computed + count))
        return budget - count

    def _admit(self, request: Request, to_come: int) -> bool:
        """Give a request its row and pages.

        Args:
            to_come: output tokens that it and everything that has pages may still produce; a share of their
                pages stays free. Alone it needs no such reserve: nothing else will ever free anything for it.
        """
        state = self._state
        alone = not (state.running.requests or state.prefilling)
        if self._window is not None:  # whoever decodes beyond its window gives back what it takes
            holders = len(state.running) + len(state.prefilling) + 1
            to_come = min(to_come, holders * self._window)
        spare = 0 if alone else state.kv.pages_for(int(to_come * self._ratio.value))
        if not state.kv.acquire(request, state.namespace(request), spare):
            return False
        state.waiting.take_first()
        if not request.num_output:
            request.cached_tokens = request.computed
        state.running.history[request.row, : request.total] = request.tokens
        state.prefilling.append(request)
        return True


class BatchBuilder:
    """Lays a plan out as the flat arrays that a runner reads."""

    def __init__(self, state: SchedulerState, max_running: int, max_batch_tokens: int) -> None:
        self._state = state
        most = max_running + max_batch_tokens
        # Every batch is made of slices of these.
        self._count: Int32 = np.arange(most + 1, dtype=np.int32)
        self._tokens: Int32 = np.empty(most, np.int32)
        self._positions: Int32 = np.empty(most, np.int32)
        self._slots: Int64 = np.empty(most, np.int64)
        self._flat_history = state.running.history.reshape(-1)
        self._flat_table = state.kv.table.pages.reshape(-1)
        self._state_slots = None if state.kv.states is None else state.kv.state_slots

    def build(self, plan: Plan) -> ForwardBatch:
        """The batch of a plan. Its arrays may share memory with the scheduler's: they are good for one pass."""
        state, count = self._state, plan.decoding
        running = state.running
        batch = ForwardBatch(
            tokens=running.tokens,
            positions=running.positions,
            slots=running.slots,
            rows=running.rows,
            starts=self._count[: count + 1],
            lengths=running.lengths,
            page_table=state.kv.table.pages,
            page_size=state.kv.page_size,
            wanted=self._count[:count],
        )
        if self._state_slots is not None:
            rows = _extended(running.rows, [chunk.request.row for chunk in plan.chunks])
            batch.state_slots = self._state_slots[rows]
        joining: list[Request] = []
        if plan.chunks:
            self._append(batch, plan.chunks)
            joining = [chunk.request for chunk in plan.chunks if chunk.completes]
        running.sampling.fill(batch, running.positions, joining)
        if state.adjusted:
            batch.adjustments = adjustments(state, joining)
        return batch

    def _append(self, batch: ForwardBatch, chunks: list[Chunk]) -> None:
        """Put the chunks behind the decoding tokens, all at once: few operations, however many chunks."""
        table, size, width = self._state.kv.table, batch.page_size, self._state.running.history.shape[1]
        at = decoding = len(batch.rows)
        sizes: list[int] = []
        ends: list[int] = []  # of each chunk, in the packed tokens
        wanted: list[int] = []
        shifts: list[tuple[int, int, int]] = []  # what turns a packed index into position, history and row
        for chunk in chunks:
            row, shift = chunk.request.row, chunk.start - at
            sizes.append(chunk.end - chunk.start)
            shifts.append((shift, row * width + shift, row * table.pages_per_row))
            at += sizes[-1]
            ends.append(at)
            if chunk.completes:
                wanted.append(at - 1)
        shift, history, rows = np.repeat(np.array(shifts, np.int64).T, sizes, axis=1)
        packed = self._count[decoding:at]
        positions, pages = packed + shift, rows
        pages += positions // size
        self._tokens[:decoding] = batch.tokens
        self._tokens[decoding:at] = self._flat_history[packed + history]
        self._positions[:decoding] = batch.positions
        self._positions[decoding:at] = positions
        self._slots[:decoding] = batch.slots
        self._slots[decoding:at] = self._flat_table[pages].astype(np.int64) * size + positions % size
        batch.tokens, batch.positions = self._tokens[:at], self._positions[:at]
        batch.slots = self._slots[:at]
        batch.rows = _extended(batch.rows, [chunk.request.row for chunk in chunks])
        batch.lengths = _extended(batch.lengths, [chunk.end for chunk in chunks])
        batch.starts = _extended(batch.starts, ends)
        batch.wanted = _extended(batch.wanted, wanted)


def _extended(array: Int32, values: list[int]) -> Int32:
    return np.concatenate((array, np.array(values, np.int32)))
