"""The random control machine of ``tests/scheduling/test_invariants.py``, run until a time is up, and counted."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.scheduling.test_invariants import Control

_SETTINGS = settings(
    max_examples=50,
    stateful_step_count=50,
    deadline=None,
    database=None,
    phases=[
        Phase.generate
    ],  # a violation is told with its seed, not made small: the test suite's runs do that
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Counts:
    """What has happened so far."""

    seconds: float = 0.0
    runs: int = 0
    control_steps: int = 0  # things that happened: verbs, requests, faults, time; all is checked after each
    scheduler_steps: int = 0
    operations: int = 0
    operations_answered_once: int = 0
    requests: int = 0
    requests_answered_once: int = 0
    violations: list[dict[str, object]] = field(default_factory=list)


class Counted(Control):
    """Adds what it did to `counts` when it ends with nothing amiss."""

    counts = Counts()

    def __init__(self) -> None:
        super().__init__()
        self.happened = self.stepped = 0

    @invariant()
    def counted(self) -> None:
        self.happened += 1

    def _step(self) -> None:
        self.stepped += 1
        super()._step()

    def teardown(self) -> None:
        """As its parent does: everything is answered now, and nothing twice, or this raises."""
        if not hasattr(self, "rig"):
            return
        super().teardown()
        counts = self.counts
        counts.runs += 1
        counts.control_steps += self.happened
        counts.scheduler_steps += self.stepped
        counts.operations += len(self.posted)
        counts.operations_answered_once += sum(one.id in self.rig.replies for one in self.posted)
        counts.requests += len(self.asked)
        counts.requests_answered_once += len(self.rig.finishes)


def run_machine(seconds: float, first_seed: int) -> Counts:
    """Random runs for so long, each batch from a seed of its own that repeats it."""
    Counted.counts = counts = Counts()
    began = time.monotonic()
    number = first_seed
    while time.monotonic() - began < seconds:
        try:
            run_state_machine_as_test(seed(number)(Counted), settings=_SETTINGS)
        except Exception as error:  # told with its seed, and the soak goes on
            traceback.print_exc()
            counts.violations.append({"seed": number, "error": f"{type(error).__name__}: {error}"[:500]})
        number += 1
    counts.seconds = round(time.monotonic() - began, 1)
    return counts
