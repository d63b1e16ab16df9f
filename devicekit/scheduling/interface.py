"""What an engine asks of its scheduler, whether that serves alone or in lockstep with other ranks."""

from __future__ import annotations

from typing import Protocol

from devicekit.scheduling.audit import PoolAudit
from devicekit.scheduling.messages import Blocker, Operation, Step
from devicekit.scheduling.participants import Participant
from devicekit.scheduling.request import Request
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.control import Control


class EngineScheduler(Protocol):
    """The methods that `Scheduler` and `LockstepScheduler` share; `Scheduler` says what each does."""

    @property
    def state(self) -> SchedulerState: ...

    @property
    def control(self) -> Control: ...

    # -- From any thread --------------------------------------------------------------------------------------

    def check(self, request: Request) -> None: ...

    def post(self, message: Request | Operation) -> None: ...

    def wait(self, seconds: float) -> bool: ...

    def wake(self) -> None: ...

    # -- From the scheduler's thread --------------------------------------------------------------------------

    def add(self, request: Request) -> None: ...

    def step(self) -> Step: ...

    def close(self) -> Step: ...

    def blockers(self) -> tuple[Blocker, ...]: ...

    def register(self, participant: Participant) -> None: ...

    def audit(self) -> PoolAudit: ...
