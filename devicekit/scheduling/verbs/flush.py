"""Flush: forget every logical cache, now or as soon as nothing is in the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from devicekit.release import ReleasePoint
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Flush, FlushReply, Refusal, Reply, describe, emptied
from devicekit.scheduling.state import SchedulerState


def flush_now(state: SchedulerState, identity: str, empty_cache: bool | None) -> FlushReply:
    """Flush if nothing blocks; otherwise say what does, and change nothing."""
    blockers = state.blockers()
    if blockers:
        message = f"Not idle: {describe(blockers)}."
        return FlushReply(identity, False, message, blockers, refusal=Refusal.BUSY)
    freed = state.kv.reset()
    failed = state.coordinator.names(state.participants.flush())
    release = state.releases.attempt(ReleasePoint.FLUSH, empty_cache)
    done = FlushReply(identity, True, emptied("Cache flushed.", release), release=release, pages_freed=freed)
    if not failed:
        return done
    message = f"The KV cache was flushed, but these caches could not be: {', '.join(failed)}."
    return replace(
        done, success=False, message=emptied(message, release), refusal=Refusal.FAILED, failed=failed
    )


def check_timeout(what: str, timeout: float | None) -> None:
    """Raise `InvalidOperation` for a timeout that is no number of seconds. Zero and less mean: do not wait."""
    if timeout is not None and not math.isfinite(timeout):
        raise InvalidOperation(f"A {what} timeout is a finite number of seconds, not {timeout}.")


@dataclass(slots=True, eq=False)
class _Waiter:
    operation: Flush
    deadline: float
    reply: FlushReply | None = None


class FlushHandler:
    """Answers `Flush`. Several may wait at once: one flush, when the scheduler is idle, answers them all."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._waiting: list[_Waiter] = []

    def __call__(self, operation: Flush) -> Reply | Callable[[], Reply | None]:
        timeout = operation.timeout
        check_timeout("flush", timeout)
        if timeout is None or timeout <= 0:
            return flush_now(self._state, operation.id, operation.empty_cache)
        waiter = _Waiter(operation, self._state.clock.now() + timeout)
        self._waiting.append(waiter)
        return lambda: self._poll(waiter)

    def _poll(self, waiter: _Waiter) -> Reply | None:
        if waiter.reply is not None:
            return waiter.reply
        # Idle is tested before the deadline: becoming idle late, but before anyone looked, is success.
        blockers = self._state.blockers()
        if not blockers:
            self._flush_for_all()
            return waiter.reply
        operation = waiter.operation
        withdrawn = self._state.withdrawals.has(operation)
        if self._state.clock.now() < waiter.deadline and not withdrawn:
            return None
        self._waiting.remove(waiter)
        if withdrawn:
            message = f"Withdrawn while it waited for: {describe(blockers)}."
            return FlushReply(operation.id, False, message, blockers, refusal=Refusal.WITHDRAWN)
        message = f"Timed out after {operation.timeout:g} s waiting for: {describe(blockers)}."
        return FlushReply(operation.id, False, message, blockers, refusal=Refusal.TIMED_OUT)

    def _flush_for_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        done = flush_now(self._state, "", _strongest([one.operation.empty_cache for one in waiting]))
        for one in waiting:
            one.reply = replace(done, id=one.operation.id)


def _strongest(wishes: list[bool | None]) -> bool | None:
    """Empty if anyone asked for it; leave it to the policy if anyone did not say."""
    if True in wishes:
        return True
    return None if None in wishes else False
