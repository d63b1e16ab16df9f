"""What the parts of a scheduler share: objects with one writer each, and what is asked of several of them.

`Requests` moves requests, `AdmissionGate` says what may run, `Deadlines` when time is up, `Participants` what else
is in flight, `Withdrawals` which operations nobody waits for, and `StagedUpdates` which weights are ready to be
written. Verbs, planner and results act through their methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from devicekit.clock import Clock
from devicekit.coordination import Coordinator
from devicekit.release import ReleasePoints
from devicekit.renamed import renamed_attribute
from devicekit.scheduling.batch import Runner
from devicekit.scheduling.deadlines import Deadlines
from devicekit.scheduling.gate import AdmissionGate
from devicekit.scheduling.kv_cache.manager import KVCacheManager
from devicekit.scheduling.messages import Blocker
from devicekit.scheduling.participants import Participant, Participants
from devicekit.scheduling.request import Finish, FinishKind, Request
from devicekit.scheduling.requests import Requests
from devicekit.scheduling.running import RunningBatch
from devicekit.scheduling.staged import StagedUpdates
from devicekit.scheduling.waiting import WaitingQueue
from devicekit.scheduling.withdrawals import Withdrawals

__all__ = ["Participant", "SchedulerState"]


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The parts, none of which is ever replaced."""

    runner: Runner
    kv: KVCacheManager
    requests: Requests
    gate: AdmissionGate
    deadlines: Deadlines
    participants: Participants
    releases: ReleasePoints
    clock: Clock
    coordinator: Coordinator
    withdrawals: Withdrawals = field(default_factory=Withdrawals)
    staged: StagedUpdates = field(default_factory=StagedUpdates)

    # -- What is asked most -----------------------------------------------------------------------------------

    @property
    def running(self) -> RunningBatch:
        """Requests that decode."""
        return self.requests.running

    @property
    def prefilling(self) -> list[Request]:
        """Requests whose prompt is being computed."""
        return self.requests.prefilling

    @property
    def waiting(self) -> WaitingQueue:
        """Requests that hold no KV."""
        return self.requests.waiting

    @property
    def weight_version(self) -> str:
        """Name of the weights."""
        return self.requests.weight_version

    @property
    def paused(self) -> bool:
        """Whether an operator has paused generation."""
        return self.gate.paused

    @property
    def healthy(self) -> bool:
        """Whether forward passes can run at all."""
        return self.gate.healthy

    # -- What takes several parts -----------------------------------------------------------------------------

    def blockers(self) -> tuple[Blocker, ...]:
        """Every reason for not being idle."""
        return tuple(Blocker(name, count) for name, count in self.work() if count)

    def work(self) -> list[tuple[str, int]]:
        """What is in flight, by name. Waiting requests hold no KV: they count only if they may start."""
        requests, gate = self.requests, self.gate
        counts = [
            ("running", len(requests.running)),
            ("prefilling", len(requests.prefilling)),
            ("waiting", len(requests.waiting) if gate.may_run and gate.admitting else 0),
        ]
        counts += [(part.name, self.participants.pending(part)) for part in self.participants]
        return counts

    def fail_all(self, message: str) -> None:
        """End every request and take on no more: the device or a rank is lost."""
        self.gate.fail(message)
        for request in list(self.requests.values()):
            self.requests.finish(request, Finish(FinishKind.ERROR, message=message))

    def __getattr__(self, name: str) -> Any:  # whatever the part has
        return renamed_attribute(self, name, _MOVED)


_MOVED = {
    "adjusted": "requests.adjusted",
    "admitting": "gate.admitting",
    "closed_by": "gate.closed_by",
    "complete": "requests.complete",
    "continue_at": "gate.continue_at",
    "empty": "releases.attempt",
    "epoch": "gate.epoch",
    "fail": "gate.fail",
    "failure": "gate.failure",
    "faults": "participants.faults",
    "finish": "requests.finish",
    "give_up": "fail_all",
    "holds": "gate.holds",
    "invalid_logits": "requests.invalid_logits",
    "may_run": "gate.may_run",
    "name_weights": "requests.name_weights",
    "namespace": "requests.namespace",
    "outputs": "requests.outputs",
    "paused_at": "gate.paused_at",
    "pending": "participants.pending",
    "ranks": "coordinator",
    "retire": "participants.retire",
    "retract": "requests.retract",
    "streaming": "requests.streaming",
    "unreported": "requests.unreported",
    "weights_changed": "requests.weights_changed",
    "weights_epoch": "requests.weights_epoch",
}
