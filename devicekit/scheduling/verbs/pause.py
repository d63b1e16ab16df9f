"""Pause, continue, abort: stopping generation without stopping the scheduler."""

from __future__ import annotations

import logging
import math

from devicekit.release import ReleasePoint
from devicekit.scheduling.errors import Conflict, InvalidOperation
from devicekit.scheduling.messages import Abort, AbortReply, Continue, Pause, PauseMode, PauseReply, emptied
from devicekit.scheduling.request import Finish, FinishKind, Request
from devicekit.scheduling.state import SchedulerState

_log = logging.getLogger(__name__)


def pause(state: SchedulerState, operation: Pause) -> PauseReply:
    """Start no forward pass from now on. Pausing twice is pausing once; a stronger mode still takes effect.

    Raises:
        InvalidOperation: ``continue_after`` is not a positive number of seconds.
    """
    after = operation.continue_after
    if after is not None and not (math.isfinite(after) and after > 0):
        raise InvalidOperation(f"continue_after must be a positive number of seconds, not {after}.")
    now = state.clock.now()
    changed = state.gate.pause(now)
    # The last to pause says how long: an earlier owner's limit must not end this one's pause.
    state.gate.continue_by_itself(None if after is None else now + after)
    aborted = retracted = 0
    if operation.mode is PauseMode.ABORT:
        aborted = abort_requests(state, list(state.requests.values()), "Generation was paused.")
    elif operation.mode is PauseMode.RETRACT:
        holders = [*state.running.requests, *state.prefilling]
        for request in holders:
            state.requests.retract(request)
        retracted = len(holders)
    return PauseReply(
        operation.id,
        True,
        "Generation paused.",
        epoch=state.gate.epoch,
        changed=changed,
        aborted=aborted,
        retracted=retracted,
    )


def resume(state: SchedulerState, operation: Continue) -> PauseReply:
    """End a pause. Continuing while running changes nothing, and does not empty the cache either.

    Raises:
        Conflict: generation could not run: memory is released, or weights are missing.
    """
    gate = state.gate
    if not gate.paused:
        return PauseReply(operation.id, True, "Generation was not paused.", epoch=gate.epoch)
    if gate.holds:
        raise Conflict(f"Generation cannot continue: {'; '.join(gate.holds.values())}.")
    # If that fails it is no reason to stay paused.
    release = state.releases.attempt(ReleasePoint.CONTINUE, operation.empty_cache)
    if release.emptied:
        gave = "an unknown number of" if release.released is None else release.released
        _log.info("emptied before generation continues, which gave back %s bytes", gave)
    seconds = None if gate.paused_at is None else state.clock.now() - gate.paused_at
    gate.resume()
    return PauseReply(
        operation.id,
        True,
        emptied("Generation continued.", release),
        release=release,
        epoch=gate.epoch,
        changed=True,
        paused_seconds=seconds,
    )


def continue_if_due(state: SchedulerState) -> None:
    """End a pause whose time is up, as if its owner had said so. While something holds generation, wait on."""
    due = state.gate.continue_at
    if due is None or state.clock.now() < due or state.gate.holds:
        return
    reply = resume(state, Continue("pause-watchdog"))
    _log.warning(
        "Generation was paused for %.1f s and nobody continued it: it goes on.", reply.paused_seconds
    )


def abort(state: SchedulerState, operation: Abort) -> AbortReply:
    """End requests by id, by prefix, or all of them.

    Raises:
        InvalidOperation: the operation names nothing, or an empty prefix.
    """
    if operation.all:
        chosen = list(state.requests.values())
    elif operation.prefix:
        prefix = operation.prefix
        chosen = [request for request in state.requests.values() if request.id.startswith(prefix)]
    elif operation.request_id:
        named = state.requests.get(operation.request_id)
        chosen = [] if named is None else [named]
    else:
        raise InvalidOperation("An abort needs a request id, a prefix that is not empty, or all.")
    count = abort_requests(state, chosen, "Aborted.")
    return AbortReply(operation.id, True, f"{count} aborted.", aborted=count)


def abort_requests(state: SchedulerState, requests: list[Request], message: str) -> int:
    """End requests with reason abort; how many it were."""
    for request in requests:
        state.requests.finish(request, Finish(FinishKind.ABORT, message=message))
    return len(requests)
