"""Which tokens the next forward pass computes: every running request's next one, and chunks of prompts."""

from __future__ import annotations

from dataclasses import dataclass

from devicekit.scheduling.begun_prompts import BegunPrompts
from devicekit.scheduling.kv_cache.layers import Chunk
from devicekit.scheduling.pacing import PromptPace
from devicekit.scheduling.request import Request
from devicekit.scheduling.reservation import NewTokenRatio
from devicekit.scheduling.scoring import positions_at_once
from devicekit.scheduling.state import SchedulerState

# Later ones may start before a request that waits for another to compute what they share; so many at most.
MOST_AHEAD = 64
# A pass that fails costs a synchronisation and two attempts: this many good ones make up for it.
_PASSES_BEFORE_GROWTH = 32


@dataclass(slots=True)
class Plan:
    """One forward pass."""

    decoding: int  # columns of the running batch
    chunks: list[Chunk]


class Planner:
    """Admits waiting requests and cuts prompts into chunks that fit the token budget.

    Args:
        pace: chooses the tokens of prompts beside running requests; default: whatever the budget leaves.
    """

    def __init__(
        self,
        state: SchedulerState,
        ratio: NewTokenRatio,
        max_batch_tokens: int,
        pace: PromptPace | None = None,
    ) -> None:
        self._state = state
        self._requests = state.requests
        self._kv = state.kv
        self._ratio = ratio
        self._pace = pace
        self._max_batch_tokens = max_batch_tokens
        self._limit = max_batch_tokens  # smaller for a while after the device ran out of memory
        self._passes: int  # that succeeded at this limit, once it is smaller
        self._starts = 0  # of requests, so far
        self._scores_at_once = self._scores_left = positions_at_once(state.runner.limits.vocab_size)

    def halve(self, tokens: int) -> int:
        """Plan smaller passes after one of ``tokens`` ran out of memory: the new limit, 0 if it was one token."""
        self._limit = tokens // 2 or 1
        self._passes = 0
        return tokens // 2

    def succeeded(self) -> None:
        """Count a pass that succeeded. After enough of them, larger passes are planned again."""
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
        now = 0.0
        if self._pace is not None:
            now = self._state.clock.now()
            budget = self._paced(self._pace, plan, budget, now)
        for request in requests.prefilling:
            budget = self._take_chunk(plan, request, budget)
        if budget > 0 and requests.waiting and self._state.gate.admitting:
            self._admit_waiting(plan, budget)
        if self._pace is not None and plan.decoding:
            self._pace.planned(now, sum(end - start for _, start, end in plan.chunks))
        return plan

    def rest(self) -> None:
        """Nothing is planned for now: the time until the next plan is not the last pass's."""
        if self._pace is not None:
            self._pace.interrupted()

    @staticmethod
    def _paced(pace: PromptPace, plan: Plan, budget: int, now: float) -> int:
        """``budget``, or what running requests can bear of it."""
        if not plan.decoding:
            pace.interrupted()
            return budget
        return min(budget, pace.tokens(now, max(budget, 0)))

    def _admit_waiting(self, plan: Plan, budget: int) -> None:
        requests = self._requests
        if not self._kv.may_start:
            return
        waiting = requests.waiting
        waiting.arrange()
        remaining = requests.running.remaining_tokens
        for one in requests.prefilling:
            remaining += one.max_total_tokens - one.total
        begun: BegunPrompts | None = None
        if self._kv.prefix is not None and (len(waiting) > 1 or requests.prefilling):
            begun = BegunPrompts(requests.prefilling, self._kv.page_size, self._kv.cached_tokens)
        set_aside: list[Request] = []
        while budget > 0 and (request := waiting.first()) is not None:
            if begun is not None and begun.must_wait(request, requests.namespace(request), self._starts):
                if request.waits is not None and self._starts - request.waits.first >= MOST_AHEAD:
                    break
                waiting.remove(request)
                set_aside.append(request)
                continue
            remaining += request.max_total_tokens - request.total
            if not self._admit(request, remaining):
                break
            budget = self._take_chunk(plan, request, budget)
            if begun is not None:
                begun.add(request)
        for request in set_aside:
            waiting.add(request)

    def _take_chunk(self, plan: Plan, request: Request, budget: int) -> int:
        start = request.computed
        count = min(self._kv.computable(request), budget)
        if request.scored is not None:
            count = self._take_scored(request, count)
        if count > 0:
            plan.chunks.append((request, start, start + count))
        return budget - count

    def _take_scored(self, request: Request, count: int) -> int:
        """Cut ``count`` down to the tokens whose prompt positions this pass can still score."""
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
        self._starts += 1
        request.begun, request.waits = self._starts, None
        return True
