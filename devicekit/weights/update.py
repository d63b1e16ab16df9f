"""What every weight update shares: when it may run, what happens to caches, and what its answer says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from devicekit.release import ReleasePoint
from devicekit.scheduling.flush import flush_now
from devicekit.scheduling.messages import Reply, UpdateOutcome, UpdateReply, UpdateWeights, describe
from devicekit.scheduling.pause import abort_requests
from devicekit.scheduling.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source wrote."""

    tensors: int
    bytes: int


def update(
    state: SchedulerState, operation: UpdateWeights, load: Callable[[], Loaded]
) -> Reply | Callable[[], Reply | None]:
    """Run a weight update as soon as it may.

    While paused, at once: requests in flight keep their KV and go on with the new weights. Otherwise it waits
    until no request holds KV; new ones stay in the queue meanwhile.

    Args:
        load: writes the new weights. It must raise before it has written anything, or restore what it wrote.
    """
    if operation.abort_all_requests:
        abort_requests(state, list(state.requests.values()), "The weights are being updated.")

    def poll() -> Reply | None:
        if not state.paused and (len(state.running) or state.prefilling):
            state.admitting = False
            return None
        state.admitting = True
        return _apply(state, operation, load)

    return poll


def _apply(state: SchedulerState, operation: UpdateWeights, load: Callable[[], Loaded]) -> UpdateReply:
    loaded = load()
    version = operation.weight_version or _next_version(state.weight_version)
    state.set_weight_version(version)
    done = UpdateReply(
        operation.id,
        True,
        f"Weights updated to version {version!r}.",
        outcome=UpdateOutcome.UPDATED,
        tensors=loaded.tensors,
        bytes=loaded.bytes,
        weight_version=version,
    )
    if not operation.flush_cache:
        return replace(done, release=state.releases.reach(ReleasePoint.WEIGHT_UPDATE, operation.empty_cache))
    # One empty is enough: the flush leaves it to the update's own release point.
    flushed = flush_now(state, operation.id, empty_cache=False)
    release = state.releases.reach(ReleasePoint.WEIGHT_UPDATE, operation.empty_cache)
    if flushed.success:
        return replace(done, release=release, flush=flushed)
    return replace(
        done,
        success=False,
        message=f"The weights were updated to version {version!r}, but the cache was not flushed: "
        f"{describe(flushed.blockers)}. Retract or finish these requests, then flush.",
        blockers=flushed.blockers,
        release=release,
        outcome=UpdateOutcome.UPDATED_NOT_FLUSHED,
        flush=flushed,
    )


def _next_version(version: str) -> str:
    """A name for weights that came without one: the old name's number, counted up."""
    stem, separator, number = version.rpartition("+")
    if separator and number.isdigit():
        return f"{stem}+{int(number) + 1}"
    return f"{version}+1"
