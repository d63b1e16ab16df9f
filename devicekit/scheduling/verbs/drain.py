"""Drain: let what runs come to its end, start nothing new, then be paused."""

from __future__ import annotations

from collections.abc import Callable

from devicekit.scheduling.messages import Drain, DrainReply, Refusal, Reply
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.flush import check_timeout


def drain(state: SchedulerState, operation: Drain) -> Callable[[], Reply | None]:
    """Wait until no request holds KV, while admission is closed behind those that do.

    Raises:
        InvalidOperation: the timeout is no number of seconds.
    """
    check_timeout("drain", operation.timeout)
    timeout = operation.timeout
    deadline = None if timeout is None else state.clock.now() + timeout

    def poll() -> Reply | None:
        remaining = state.requests.holding_kv
        waiting = len(state.waiting)
        if not remaining:
            state.gate.pause(state.clock.now())
            return DrainReply(
                operation.id, True, "Drained and paused.", waiting=waiting, epoch=state.gate.epoch
            )
        # What cannot go on never ends by itself: say so at once rather than when the time is up. Who could help
        # may even wait for this: an update that would write the weights that are missing.
        stuck = state.gate.standstill
        withdrawn = state.withdrawals.has(operation)
        if stuck or withdrawn or (deadline is not None and state.clock.now() >= deadline):
            refusal = Refusal.CONFLICT if stuck else Refusal.WITHDRAWN if withdrawn else Refusal.TIMED_OUT
            return DrainReply(
                operation.id,
                False,
                f"{remaining} requests still hold KV" + (f", and {stuck}." if stuck else "."),
                state.blockers(),
                refusal=refusal,
                remaining=remaining,
                waiting=waiting,
                epoch=state.gate.epoch,
            )
        return None

    return poll
