"""Drain: let what runs come to its end, start nothing new, then be paused."""

from __future__ import annotations

from collections.abc import Callable

from devicekit.scheduling.messages import Drain, DrainReply, Refusal, Reply
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.flush import check_timeout
from devicekit.scheduling.verbs.pause import enter_pause


def drain(state: SchedulerState, operation: Drain) -> Callable[[], Reply | None]:
    """Wait until no request holds KV, with the door closed behind those that do.

    Raises:
        InvalidOperation: the timeout is no number of seconds.
    """
    check_timeout("drain", operation.timeout)
    timeout = operation.timeout
    deadline = None if timeout is None else state.clock.now() + timeout

    def poll() -> Reply | None:
        remaining = holding_kv(state)
        waiting = len(state.waiting)
        if not remaining:
            state.closed_by.discard(operation.id)
            enter_pause(state)
            return DrainReply(operation.id, True, "Drained and paused.", waiting=waiting, epoch=state.epoch)
        # Paused in place, they can never end by themselves: say so at once rather than when the time is up.
        stuck = state.paused and state.continue_at is None
        if stuck or (deadline is not None and state.clock.now() >= deadline):
            state.closed_by.discard(operation.id)
            return DrainReply(
                operation.id,
                False,
                f"{remaining} requests still hold KV" + (", and generation is paused." if stuck else "."),
                state.blockers(),
                refusal=Refusal.CONFLICT if stuck else Refusal.TIMED_OUT,
                remaining=remaining,
                waiting=waiting,
                epoch=state.epoch,
            )
        state.closed_by.add(operation.id)
        return None

    return poll


def holding_kv(state: SchedulerState) -> int:
    """Requests that hold KV."""
    return len(state.running) + len(state.prefilling)
