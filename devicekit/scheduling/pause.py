"""Pause, continue, abort: stopping generation without stopping the scheduler."""

from __future__ import annotations

from devicekit.contract.errors import DeviceKitError
from devicekit.release import ReleasePoint
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Abort, AbortReply, Continue, Pause, PauseMode, PauseReply
from devicekit.scheduling.request import Finish, FinishKind, Request
from devicekit.scheduling.state import SchedulerState


def pause(state: SchedulerState, operation: Pause) -> PauseReply:
    """Start no forward pass from now on. Pausing twice is pausing once; a stronger mode still takes effect."""
    changed = not state.paused
    if changed:
        state.paused = True
        state.epoch += 1
    aborted = retracted = 0
    if operation.mode is PauseMode.ABORT:
        aborted = abort_requests(state, list(state.requests.values()), "Generation was paused.")
    elif operation.mode is PauseMode.RETRACT:
        holders = [*state.running.requests, *state.prefilling]
        for request in holders:
            state.retract(request)
        retracted = len(holders)
    return PauseReply(
        operation.id,
        True,
        "Generation paused.",
        epoch=state.epoch,
        changed=changed,
        aborted=aborted,
        retracted=retracted,
    )


def resume(state: SchedulerState, operation: Continue) -> PauseReply:
    """End a pause. Continuing while running changes nothing, and does not empty the cache either."""
    if not state.paused:
        return PauseReply(operation.id, True, "Generation was not paused.", epoch=state.epoch)
    message, release = "Generation continued.", None
    try:
        release = state.releases.reach(ReleasePoint.CONTINUE, operation.empty_cache)
    except DeviceKitError as error:  # what gives memory back is best effort, and no reason to stay paused
        message = f"Generation continued, but its cache could not be emptied: {error}"
    state.paused = False
    state.epoch += 1
    return PauseReply(operation.id, True, message, release=release, epoch=state.epoch, changed=True)


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
        chosen = [request for request in state.requests.values() if request.id == operation.request_id]
    else:
        raise InvalidOperation("An abort needs a request id, a prefix that is not empty, or all.")
    count = abort_requests(state, chosen, "Aborted.")
    return AbortReply(operation.id, True, f"{count} aborted.", aborted=count)


def abort_requests(state: SchedulerState, requests: list[Request], message: str) -> int:
    """End requests with reason abort; how many it were."""
    for request in requests:
        state.finish(request, Finish(FinishKind.ABORT, message=message))
    return len(requests)
