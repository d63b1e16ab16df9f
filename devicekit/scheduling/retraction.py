"""Frees pages when the pool runs short: the request that has generated least gives up its KV."""

from __future__ import annotations

from devicekit.scheduling.request import Finish, FinishKind, Request
from devicekit.scheduling.reservation import LOOK_AHEAD, NewTokenRatio
from devicekit.scheduling.state import SchedulerState


class Retraction:
    """Frees pages by sending requests back to the waiting queue. They keep the tokens they have."""

    def __init__(self, state: SchedulerState, ratio: NewTokenRatio) -> None:
        self._state = state
        self._ratio = ratio
        self.count = 0  # retractions so far

    def make_room_for_step(self) -> bool:
        """Give every running request the page it needs next, retracting until the rest fit.

        Returns:
            False when a request that runs alone had to be ended because it does not fit.
        """
        state = self._state
        running = state.requests.running
        full = running.full_columns()
        if not len(full) or state.kv.make_room(len(full)):
            return running.begin_step(full)
        # Prompts that have begun hold pages and have generated least of all.
        for request in reversed(state.prefilling[:]):
            self._retract(request)
            if state.kv.make_room(len(running.full_columns())):
                return running.begin_step()
        ranked = self._ranked()
        while len(ranked) > 1:
            self._retract(ranked.pop())
            ahead = state.kv.pages_for(LOOK_AHEAD) * len(ranked)
            if state.kv.make_room(len(running.full_columns())):
                state.kv.make_room(ahead)
                self._raise_ratio()
                return running.begin_step()
        alone = ranked[0]
        running.settle(alone)
        message = f"The KV pool of {state.kv.pages.num_pages} pages cannot hold its {alone.total} tokens."
        state.requests.finish(alone, Finish(FinishKind.ERROR, message=message))
        return False

    def shed_load(self, most: int) -> bool:
        """Keep at most ``most`` requests running. False if that is none: the pass cannot get smaller."""
        if most:
            for request in self._ranked()[most:]:
                self._retract(request)
        return most > 0

    def _ranked(self) -> list[Request]:
        """Running requests, the first to keep its KV longest: by priority, most generated, shortest prompt."""
        running = self._state.running
        for request in running.requests:
            running.settle(request)
        return sorted(
            running.requests,
            key=lambda request: (
                -request.priority,
                -request.num_output,
                len(request.prompt),
                request.arrival,
            ),
        )

    def _retract(self, request: Request) -> None:
        self._state.requests.retract(request)
        self.count += 1

    def _raise_ratio(self) -> None:
        running = self._state.running
        remaining = running.remaining_tokens
        decoded = sum(request.num_output for request in running.requests)
        self._ratio.retracted(decoded, remaining, len(running))
