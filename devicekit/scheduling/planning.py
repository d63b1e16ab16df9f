"""Which tokens the next forward pass computes: every running request's next one, and chunks of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from devicekit.scheduling.batch import ForwardBatch, Int32
from devicekit.scheduling.request import Request
from devicekit.scheduling.reservation import NewTokenRatio
from devicekit.scheduling.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Chunk:
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

    def plan(self) -> Plan:
        """Choose the next pass. Running requests come first, then prompts that have begun, then new ones."""
        state = self._state
        plan = Plan(len(state.running))
        budget = self._max_batch_tokens - plan.decoding
        for request in state.prefilling:
            budget = self._take_chunk(plan, request, budget)
        while budget > 0 and state.admitting and len(state.waiting) and self._admit(state.waiting.first()):
            budget = self._take_chunk(plan, state.prefilling[-1], budget)
        return plan

    @staticmethod
    def _take_chunk(plan: Plan, request: Request, budget: int) -> int:
        count = min(budget, request.total - request.computed)
        if count > 0:
            plan.chunks.append(Chunk(request, request.computed, request.computed + count))
        return budget - count

    def _admit(self, request: Request) -> bool:
        state = self._state
        namespace = (request.namespace, state.weight_version)
        if not state.kv.acquire(request, namespace, self._spare(request)):
            return False
        state.waiting.take_first()
        if not request.num_output:
            request.cached_tokens = request.computed
        state.running.history[request.row, : request.total] = request.tokens
        state.prefilling.append(request)
        return True

    def _spare(self, newcomer: Request) -> int:
        """Pages to leave for the output of what runs already, and of the newcomer."""
        state = self._state
        others = len(state.running) + len(state.prefilling)
        if not others:  # whatever it may need later, nothing else is going to free anything for it
            return 0
        to_come = state.running.to_come() + newcomer.limit - newcomer.total
        for request in state.prefilling:
            to_come += request.limit - request.total
        return state.kv.pages_for(int(to_come * self._ratio.value))


class BatchBuilder:
    """Lays a plan out as the flat arrays that a runner reads."""

    def __init__(self, state: SchedulerState, max_running: int, max_batch_tokens: int) -> None:
        self._state = state
        # Every batch is made of slices of this.
        self._count: Int32 = np.arange(max_running + max_batch_tokens + 1, dtype=np.int32)
        self._flat_history = state.running.history.reshape(-1)
        self._flat_table = state.kv.table.pages.reshape(-1)

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
        if not plan.chunks:
            running.sampling.fill(batch, running.positions, [])
            return batch
        self._append(batch, plan.chunks)
        running.sampling.fill(
            batch, running.positions, [chunk.request for chunk in plan.chunks if chunk.completes]
        )
        return batch

    def _append(self, batch: ForwardBatch, chunks: list[Chunk]) -> None:
        """Put the chunks behind the decoding tokens, all at once."""
        table, size = self._state.kv.table, batch.page_size
        decoding = len(batch.rows)
        fields = [(chunk.request.row, chunk.start, chunk.end, chunk.completes) for chunk in chunks]
        rows, begins, ends, completes = np.array(fields, np.int64).T
        sizes = ends - begins
        stops = np.cumsum(sizes)
        # One entry per token: its position, and the row it is in.
        positions = np.arange(stops[-1]) + np.repeat(begins - stops + sizes, sizes)
        token_rows = np.repeat(rows, sizes)
        pages = self._flat_table[token_rows * table.pages_per_row + positions // size].astype(np.int64)
        tokens = self._flat_history[token_rows * self._state.running.history.shape[1] + positions]
        batch.tokens = np.concatenate((batch.tokens, tokens))
        batch.positions = np.concatenate((batch.positions, positions.astype(np.int32)))
        batch.slots = np.concatenate((batch.slots, pages * size + positions % size))
        batch.rows = np.concatenate((batch.rows, rows.astype(np.int32)))
        batch.starts = np.concatenate((batch.starts, (stops + decoding).astype(np.int32)))
        batch.lengths = np.concatenate((batch.lengths, ends.astype(np.int32)))
        last = (stops + decoding - 1)[completes.astype(bool)]
        batch.wanted = np.concatenate((batch.wanted, last.astype(np.int32)))
