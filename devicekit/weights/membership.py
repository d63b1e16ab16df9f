"""Which fleet steers this engine, and whether the engine waits for that fleet's weights.

A fleet claims an engine before it changes anything, and gets a lease: a word that all its later operations must
carry. Another claim makes another lease, so that an earlier process, or a message that arrives late, is refused.
An engine that was restarted knows no lease.
"""

from __future__ import annotations

from collections.abc import Callable

from devicekit.contract.text import shown
from devicekit.scheduling.errors import Conflict, InvalidOperation
from devicekit.scheduling.messages import Refusal, Reply, describe
from devicekit.scheduling.verbs.flush import check_timeout
from devicekit.weights.operations import (
    ClaimForFleet,
    EndClaim,
    HoldForFleet,
    HoldMode,
    JoinFleet,
    PreparedReply,
)
from devicekit.weights.reading import total_checksum
from devicekit.weights.store import WeightStore

HOLD = "fleet"


class Membership:
    """The handlers of `ClaimForFleet`, `EndClaim`, `HoldForFleet` and `JoinFleet`."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._hold = store.state.gate.token(HOLD)
        self.waiting = False  # for the fleet's weights; to be read only
        self._fleet = self._lease = self._steered_by = ""
        self._last_holder: str | None = None  # also once its claim has ended; None: there was no claim

    @property
    def steered_by(self) -> str | None:
        """Who has claimed this engine, for people to read; ``None``: nobody."""
        return (self._steered_by or self._fleet) if self._lease else None

    def require(self, lease: str) -> None:
        """Do nothing for the holder of the lease, or for anybody while there is none.

        Raises:
            Conflict: somebody else does, or the lease is an old one.
        """
        if lease == self._lease:
            return
        if not self._lease:
            raise Conflict(
                "This lease is not known here: the engine was started anew, or the claim was ended."
            )
        raise Conflict(f"{self.steered_by} steers this engine: what comes without its lease is refused.")

    def claim(self, operation: ClaimForFleet) -> Reply:
        """Let one fleet alone steer this engine from now on.

        Raises:
            InvalidOperation: the fleet or the lease has no name.
            Conflict: another fleet does, or did since the claim that this one follows.
        """
        if not operation.fleet or not operation.lease:
            raise InvalidOperation("A claim needs the name of a fleet.")
        if self._lease and operation.fleet != self._fleet and not operation.take_over:
            raise Conflict(
                f"{self.steered_by} steers this engine: end that, or take the engine over from it."
            )
        if operation.again and self._last_holder not in (None, operation.holder):
            raise Conflict(
                "Another process has steered this engine since it was claimed: what was begun then is over."
            )
        self._last_holder = operation.holder
        self._fleet, self._lease, self._steered_by = operation.fleet, operation.lease, operation.steered_by
        return self._reply(operation.id, "Claimed.", self._lease)

    def end_claim(self, operation: EndClaim) -> Reply:
        """Let others steer. An old lease changes nothing."""
        if operation.lease == self._lease:
            self._fleet = self._lease = self._steered_by = ""
        return self._reply(operation.id, "Not claimed under this lease any more.")

    def wait_for_fleet(self) -> None:
        """Generate nothing until `join`."""
        self.waiting = True
        self._hold.hold("it waits for the weights of its fleet: POST /join_fleet once it has them")

    def hold(self, operation: HoldForFleet) -> Callable[[], Reply | None]:
        """Generate nothing until `join`. Running requests are retracted, kept as they are, or run to their end.

        This is no pause: a pause that an operator has set outlives it, and continuing does not end it.

        Raises:
            Conflict: another fleet steers.
            InvalidOperation: the timeout is no number of seconds.
        """
        self.require(operation.lease)
        check_timeout("hold", operation.timeout)
        state, timeout = self._store.state, operation.timeout
        deadline = None if timeout is None else state.clock.now() + timeout

        def poll() -> Reply | None:
            self.require(operation.lease)
            if (
                operation.mode is HoldMode.FINISH
                and not self.waiting
                and (running := state.requests.holding_kv)
            ):
                withdrawn = state.withdrawals.has(operation)
                stuck = not state.gate.may_run and state.gate.continue_at is None
                late = deadline is not None and state.clock.now() >= deadline
                if not (stuck or withdrawn or late):
                    return None
                refusal = Refusal.WITHDRAWN if withdrawn else Refusal.CONFLICT if stuck else Refusal.TIMED_OUT
                message = f"{running} requests have not ended: {describe(state.blockers())}."
                return PreparedReply(operation.id, False, message, state.blockers(), refusal=refusal)
            if operation.mode is HoldMode.RETRACT:
                for request in [*state.running.requests, *state.prefilling]:
                    state.requests.retract(request)
            self.wait_for_fleet()
            return self._reply(operation.id, "Generates nothing until it joins the fleet.")

        return poll

    def join(self, operation: JoinFleet) -> Reply:
        """Start to generate, if the weights are the fleet's.

        Raises:
            Conflict: they are not, or another fleet steers.
        """
        self.require(operation.lease)
        version = self._store.state.weight_version
        if operation.weight_version != version:
            raise Conflict(
                f"The fleet serves {shown(operation.weight_version)}, and this engine has {shown(version)}."
            )
        if operation.checksum is not None and (mine := total_checksum(self._store)) != operation.checksum:
            raise Conflict(f"The fleet's weights have the checksum {operation.checksum}, these have {mine}.")
        self.waiting = False
        self._hold.release()
        return self._reply(operation.id, "Part of the fleet.")

    def _reply(self, operation_id: str, message: str, lease: str = "") -> PreparedReply:
        return PreparedReply(
            operation_id,
            True,
            message,
            weight_version=self._store.state.weight_version,
            lease=lease,
            waiting=self.waiting,
        )
