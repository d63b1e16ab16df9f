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
        to_come = int(state.running.left.sum()) + sum(
            request.limit - request.total for request in (*state.prefilling, newcomer)
        )
        return state.kv.pages_for(int(to_come * self._ratio.value))


class BatchBuilder:
    """Lays a plan out as the flat arrays that a runner reads."""

    def __init__(self, state: SchedulerState, max_running: int, max_batch_tokens: int) -> None:
        self._state = state
        size = max(max_running, max_batch_tokens)
        self._count: Int32 = np.arange(size + 1, dtype=np.int32)
        self._lengths: Int32 = np.empty(max_running, np.int32)

    def build(self, plan: Plan) -> ForwardBatch:
        """The batch of a plan. Its arrays may share memory with the scheduler's: they are good for one pass."""
        state, count = self._state, plan.decoding
        running = state.running
        positions = running.lengths.astype(np.int32)
        batch = ForwardBatch(
            tokens=running.tokens,
            positions=positions,
            slots=running.slots,
            rows=running.rows.astype(np.int32),
            starts=self._count[: count + 1],
            lengths=np.add(positions, 1, out=self._lengths[:count]),
            page_table=state.kv.table.pages,
            page_size=state.kv.page_size,
            wanted=self._count[:count],
        )
        if plan.chunks:
            self._append(batch, plan)
        joining = [chunk.request for chunk in plan.chunks if chunk.completes]
        running.sampling.fill(batch, positions, joining)
        return batch

    def _append(self, batch: ForwardBatch, plan: Plan) -> None:
        state, size = self._state, batch.page_size
        history, table = state.running.history, batch.page_table
        tokens, positions, slots = [batch.tokens], [batch.positions], [batch.slots]
        sizes: list[int] = []
        wanted: list[int] = []
        at = plan.decoding
        for chunk in plan.chunks:
            row = chunk.request.row
            span = np.arange(chunk.start, chunk.end, dtype=np.int32)
            tokens.append(history[row, chunk.start : chunk.end])
            positions.append(span)
            slots.append(table[row, span // size].astype(np.int64) * size + span % size)
            sizes.append(chunk.end - chunk.start)
            at += sizes[-1]
            if chunk.completes:
                wanted.append(at - 1)
        requests = [chunk.request.row for chunk in plan.chunks]
        ends = np.cumsum(sizes, dtype=np.int32) + np.int32(plan.decoding)
        batch.tokens = np.concatenate(tokens)
        batch.positions = np.concatenate(positions)
        batch.slots = np.concatenate(slots)
        batch.rows = np.concatenate((batch.rows, np.array(requests, np.int32)))
        batch.starts = np.concatenate((batch.starts, ends))
        batch.lengths = np.concatenate(
            (batch.lengths, np.array([chunk.end for chunk in plan.chunks], np.int32))
        )
        batch.wanted = np.concatenate((batch.wanted, np.array(wanted, np.int32)))
