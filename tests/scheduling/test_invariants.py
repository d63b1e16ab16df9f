"""Whatever is asked in whatever order, and whatever fails: what must always hold, holds after every step.

The engine, what happens to it and what must hold are those of ``tests/soak``; here Hypothesis chooses, and makes
what it finds small. `CONTROL_EXAMPLES` (environment) sets how many random runs are made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.soak.machine import end, happen, verdict
from tests.soak.stepping import step
from tests.soak.world import World

_T = TypeVar("_T")


class Chosen:
    """Has Hypothesis choose."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def pick(self, choices: Sequence[_T]) -> _T:
        return choices[self.number(0, len(choices) - 1)]

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))


class Control(RuleBasedStateMachine):
    world: World

    @initialize(data=st.data())
    def build(self, data: st.DataObject) -> None:
        logging.disable(logging.CRITICAL)  # injected failures are logged, as they should be
        self.world = World(Chosen(data))

    @rule(data=st.data(), steps=st.integers(0, 3))
    def something_happens(self, data: st.DataObject, steps: int) -> None:
        name = happen(self.world, Chosen(data))
        for _ in range(steps):
            step(self.world)
        verdict(self.world, name)

    def teardown(self) -> None:
        """Put everything right: then every operation is answered, every request ends, and nothing is left."""
        if not hasattr(self, "world"):
            return
        try:
            if not self.world.wrong:
                end(self.world)
                verdict(self.world, "the end")
        finally:
            self.world.close()
            logging.disable(logging.NOTSET)


TestControl = Control.TestCase
TestControl.settings = settings(
    max_examples=int(os.environ.get("CONTROL_EXAMPLES", "60")),
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)
