"""One request's way through its declared uses: what is in use, what is next, and what to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from devicekit.contract.text import shown
from devicekit.residency.errors import ResidencyError
from devicekit.residency.report import RequestReport
from devicekit.residency.uses import ComponentUse, Stage


@dataclass(slots=True)
class RequestState:
    """The plan of a request and how far it has come."""

    stages: Sequence[Stage]
    report: RequestReport
    plan: list[ComponentUse] = field(init=False)
    position: int = 0  # in the plan: the next use that has not begun
    stage: Stage | None = None
    stage_position: int = 0  # the next stage that has not begun
    active: ComponentUse | None = None
    held: dict[str, ComponentUse] = field(default_factory=dict)  # components made ready and not released

    def __post_init__(self) -> None:
        self.plan = [use for stage in self.stages for use in stage.uses]

    @property
    def upcoming(self) -> ComponentUse | None:
        """The next use that is planned."""
        return self.plan[self.position] if self.position < len(self.plan) else None

    def enter(self, name: str) -> Stage:
        """Go on to the next stage of this name."""
        for index in range(self.stage_position, len(self.stages)):
            if self.stages[index].name == name:
                self.stage_position = index + 1
                self.stage = self.stages[index]
                # Uses of stages that were passed over do not come any more.
                passed = sum(len(stage.uses) for stage in self.stages[:index])
                self.position = max(self.position, passed)
                return self.stage
        left = ", ".join(stage.name for stage in self.stages[self.stage_position :]) or "none"
        raise ResidencyError(f"No stage {shown(name)} is left in this request; left are: {left}.")

    def take(self, component: str, phase: str) -> ComponentUse:
        """The planned use that begins now. An undeclared one is allowed; the plan goes on after it."""
        wanted = ComponentUse(component, phase)
        for index in range(self.position, len(self.plan)):
            if self.plan[index].same(wanted):
                self.position = index + 1
                return self.plan[index]
        return wanted

    def is_last(self, use: ComponentUse) -> bool:
        """Whether no planned use needs its component again."""
        return all(later.component != use.component for later in self.plan[self.position :])

    def kept(self, component: str) -> bool:
        """Whether a component stays ready when this request has ended."""
        uses = [use for use in self.plan if use.component == component]
        if self.report.warmup:
            return any(use.keep_after_warmup for use in uses)
        return any(use.keep_after_request for use in uses)
