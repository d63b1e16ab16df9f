"""Flush: forget every logical cache, now or as soon as nothing is in the way."""

from __future__ import annotations

import math
from collections.abc import Callable

from devicekit.release import ReleasePoint
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Flush, FlushReply, Reply, describe
from devicekit.scheduling.state import SchedulerState


def flush_now(state: SchedulerState, identity: str, empty_cache: bool | None) -> FlushReply:
    """Flush if nothing blocks; otherwise say what does, and change nothing."""
    blockers = state.blockers()
    if blockers:
        return FlushReply(identity, False, f"Not idle: {describe(blockers)}.", blockers)
    freed = state.kv.reset()
    for part in state.participants:
        if part.flush is not None:
            part.flush()
    release = state.releases.reach(ReleasePoint.FLUSH, empty_cache)
    return FlushReply(identity, True, "Cache flushed.", release=release, pages_freed=freed)


class FlushHandler:
    """Answers `Flush`. Several may wait at once; each is answered, and the first to find the scheduler idle
    does the work for all."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def __call__(self, operation: Flush) -> Reply | Callable[[], Reply | None]:
        timeout = operation.timeout
        if timeout is not None and not math.isfinite(timeout):
            raise InvalidOperation(f"A flush timeout is a finite number of seconds, not {timeout}.")
        if timeout is None or timeout <= 0:
            return flush_now(self._state, operation.id, operation.empty_cache)
        deadline = self._state.clock.now() + timeout
        return lambda: self._poll(operation, deadline)

    def _poll(self, operation: Flush, deadline: float) -> Reply | None:
        # Idle is tested before the deadline: becoming idle late, but before anyone looked, is success.
        blockers = self._state.blockers()
        if not blockers:
            return flush_now(self._state, operation.id, operation.empty_cache)
        if self._state.clock.now() < deadline:
            return None
        message = f"Timed out after {operation.timeout:g} s waiting for: {describe(blockers)}."
        return FlushReply(operation.id, False, message, blockers)
