"""A session of several updates: nothing is generated from its first to its last, and its end sums them up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devicekit.scheduling.errors import Conflict
from devicekit.scheduling.messages import Refusal, Reply, UpdateOutcome, UpdateReply, describe
from devicekit.scheduling.state import SchedulerState
from devicekit.weights.operations import BeginWeightUpdate, EndWeightUpdate, SessionReply

HOLD = "weight update"


@dataclass(slots=True)
class _Tally:
    updates: int = 0
    failures: int = 0
    tensors: int = 0
    bytes: int = 0
    flushed: bool = True  # the last update left no old cache behind
    partial: bool = False
    version: str | None = None

    @property
    def outcome(self) -> UpdateOutcome:
        if self.partial or (self.failures and self.updates):
            return UpdateOutcome.PARTIAL
        if not self.updates:
            return UpdateOutcome.UNCHANGED
        return UpdateOutcome.UPDATED if self.flushed else UpdateOutcome.UPDATED_NOT_FLUSHED


class UpdateSession:
    """At most one session at a time. Updates outside of a session are sessions of their own."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._hold = state.gate.token(HOLD)
        self._tally: _Tally | None = None

    @property
    def open(self) -> bool:
        """Whether a session is under way."""
        return self._tally is not None

    @property
    def version(self) -> str | None:
        """The name that the session's updates so far have given the weights."""
        return None if self._tally is None else self._tally.version

    def updated(self, reply: UpdateReply) -> None:
        """Note an update that has written its weights."""
        if (tally := self._tally) is not None:
            tally.updates += 1
            tally.tensors += reply.tensors
            tally.bytes += reply.bytes
            tally.flushed = reply.outcome is UpdateOutcome.UPDATED
            tally.version = reply.weight_version

    def failed(self, *, partial: bool = False) -> None:
        """Note an update that failed, with some weights written or none."""
        if (tally := self._tally) is not None:
            tally.failures += 1
            tally.partial |= partial

    def begin(self, operation: BeginWeightUpdate) -> Callable[[], Reply | None]:
        """Open a session as soon as no request holds KV, or at once while paused.

        Raises:
            Conflict: one is open.
        """

        def poll() -> Reply | None:
            state = self._state
            if self._tally is not None:
                raise Conflict("A weight update is in progress already: end it first.")
            if not state.gate.paused and state.requests.holding_kv:
                if state.withdrawals.has(operation):
                    message = f"Withdrawn while it waited for: {describe(state.blockers())}."
                    return SessionReply(
                        operation.id, False, message, state.blockers(), refusal=Refusal.WITHDRAWN
                    )
                return None
            self._tally = _Tally()
            self._hold.hold("a weight update is in progress")
            return SessionReply(operation.id, True, "Weight update begun.")

        return poll

    def end(self, operation: EndWeightUpdate) -> Reply:
        """Close the session and say what became of the weights.

        Raises:
            Conflict: none is open.
        """
        tally = self._tally
        if tally is None:
            raise Conflict("No weight update is in progress.")
        self._tally = None
        self._hold.release()
        complete = tally.outcome is not UpdateOutcome.PARTIAL
        return SessionReply(
            operation.id,
            complete,
            "Weight update ended."
            if complete
            else "Some updates of this session failed: the weights are of several versions.",
            refusal=None if complete else Refusal.FAILED,
            outcome=tally.outcome,
            updates=tally.updates,
            failures=tally.failures,
            tensors=tally.tensors,
            bytes=tally.bytes,
            weight_version=tally.version,
        )
