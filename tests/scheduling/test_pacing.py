"""Prompts are computed beside running requests without making these wait longer than was asked for.

The time of a pass is drawn: a fixed part, a part for each running request and one for each token of a prompt, and
now and then a pass is held up for a reason of its own. The clock is moved by it, as by a device that works.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from devicekit.contract.errors import ConfigurationError
from devicekit.device import get_device
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.scheduling.rig import Clock

_LEAST = 32  # prompt tokens that a pass may always have
_MOST = 512  # tokens of a pass


@dataclass(frozen=True)
class Costs:
    """Seconds."""

    fixed: float = 0.010
    running: float = 0.0001  # a running request
    prompt: float = 0.0005  # a token of a prompt
    mixed: float = 0.0  # a pass that has any

    def of(self, running: int, prompt: int) -> float:
        return self.fixed + self.running * running + self.prompt * prompt + self.mixed * bool(prompt)


@dataclass(frozen=True)
class Seen:
    running: int
    prompt: int
    seconds: float


@dataclass
class TimedRunner:
    """Gives one token after another, and takes as long as it is told to."""

    costs: Costs
    clock: Clock = field(default_factory=Clock)
    held_up_at: tuple[int, float] = (-1, 0.0)  # in which pass, and for how long
    running: int = 0
    passes: list[Seen] = field(default_factory=list)
    limits: ModelLimits = field(default_factory=lambda: ModelLimits(99, 8192, frozenset()))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ()

    def step(self, batch: ForwardBatch) -> StepOutput:
        prompt = len(batch.input_ids) - self.running
        at, held_up = self.held_up_at
        seconds = self.costs.of(self.running, prompt) + held_up * (at == len(self.passes))
        self.clock.sleep(seconds)
        self.passes.append(Seen(self.running, prompt, seconds))
        return StepOutput(np.full(len(batch.logits_indices), 7, np.int32))


@dataclass
class World:
    scheduler: Scheduler
    runner: TimedRunner
    count: int = 0

    def add(self, prompt: int, tokens: int = 4000) -> None:
        self.count += 1
        params = SamplingParams(max_new_tokens=tokens, temperature=0, ignore_eos=True)
        ids = np.full(prompt, self.count % 90, np.int32)
        self.scheduler.add(Request(f"r{self.count}", ids, params))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.runner.running = len(self.scheduler.state.running.requests)
            self.scheduler.step()

    def passes(self, prompt: int) -> list[Seen]:
        """Add a prompt, and those that it took."""
        begun = len(self.runner.passes)
        self.add(prompt)
        self.step()
        while self.scheduler.state.prefilling or self.scheduler.state.waiting:
            self.step()
        return self.runner.passes[begun:]


def _world(costs: Costs, slowdown: float | None, running: int = 4) -> World:
    runner = TimedRunner(costs)
    limits = SchedulerLimits(
        8192,
        page_size=16,
        max_running=64,
        max_batch_tokens=_MOST,
        max_slowdown=slowdown,
        prefix_caching=False,
    )
    world = World(Scheduler(runner, get_device("cpu"), limits, clock=runner.clock), runner)
    for _ in range(running):
        world.add(8)
    world.step(8)
    return world


_COSTS = st.builds(
    Costs,
    fixed=st.floats(1e-4, 0.1),
    running=st.floats(0, 1e-3),
    prompt=st.floats(1e-6, 1e-2),
)


@given(_COSTS, st.integers(1, 32), st.sampled_from([2.0, 4.0, 10.0]), st.integers(500, 4000))
def test_running_requests_wait_at_most_so_much_longer(
    costs: Costs, running: int, slowdown: float, prompt: int
) -> None:
    world = _world(costs, slowdown, running)
    usual = costs.of(running, 0)
    passes = world.passes(prompt)
    assert sum(one.prompt for one in passes) == prompt  # whole, in the end
    for one in passes[1:]:  # before the first nothing is known of prompts
        assert one.seconds <= slowdown * usual * 1.01 or one.prompt <= _LEAST
    settled = passes[8:-1]
    for one in settled:  # what is allowed is used, by passes without prompts now and then at most
        more = costs.of(running, one.prompt * 2)
        assert one.prompt == _MOST - running or more > slowdown * usual * 0.8 or not one.prompt


def test_where_prompts_cost_little_they_soon_have_the_whole_pass() -> None:
    passes = _world(Costs(fixed=0.02, prompt=1e-6), 4.0).passes(4000)
    assert [one.prompt for one in passes[:5]] == [64, 128, 256, 508, 508]


def test_without_a_bound_prompts_have_all_that_the_budget_leaves() -> None:
    passes = _world(Costs(prompt=0.01), None).passes(2000)
    assert [one.prompt for one in passes] == [508, 508, 508, 476]


def test_a_prompt_that_holds_nobody_up_has_the_whole_pass() -> None:
    passes = _world(Costs(prompt=0.01), 4.0, running=0).passes(1000)
    assert [one.prompt for one in passes] == [512, 488]


@given(st.integers(0, 40), st.floats(0.1, 60), st.sampled_from([1e-5, 1e-4, 5e-4]))
def test_one_pass_that_was_held_up_changes_little(at: int, seconds: float, prompt: float) -> None:
    costs = Costs(prompt=prompt)
    world, calm = _world(costs, 4.0), _world(costs, 4.0)
    world.runner.held_up_at = len(world.runner.passes) + at, seconds
    found, others = world.passes(4000), calm.passes(4000)
    assert len(found) <= len(others) + 8
    late = [one for one in found[1:] if one.seconds > 4 * costs.of(4, 0) * 1.02]
    assert len(late) <= 2  # itself, and one more before it is known better


def test_a_short_prompt_that_was_held_up_changes_little() -> None:
    world = _world(Costs(), 4.0)
    world.passes(500)
    world.runner.held_up_at = len(world.runner.passes), 10.0
    world.passes(3)
    assert all(one.seconds <= 4 * Costs().of(6, 0) * 1.02 for one in world.passes(3000))


def test_a_pass_that_is_slow_by_itself_does_not_starve_prompts() -> None:
    """What any prompt costs, however short, is no reason to compute it in smaller and smaller pieces."""
    costs = Costs(fixed=0.002, prompt=1e-4, mixed=0.03)
    passes = _world(costs, 4.0).passes(4000)
    assert all(one.prompt >= _LEAST for one in passes[:-1] if one.prompt)
    for one in passes[6:-1]:
        assert one.seconds <= 2 * costs.of(4, 1) * 1.1
        assert one.seconds >= 1.5 * costs.of(4, 1) or not one.prompt


def test_what_is_usual_is_measured_again_where_prompts_never_end() -> None:
    world = _world(Costs(), 4.0)
    for _ in range(20):
        world.add(4000)
    world.step(200)
    world.runner.costs = Costs(fixed=0.1)  # the usual pass takes ten times as long from now on
    before = max(one.prompt for one in world.runner.passes[-100:])
    world.step(100)
    assert world.scheduler.state.prefilling
    assert min(one.prompt for one in world.runner.passes[-20:] if one.prompt) >= 4 * before
    without = [one for one in world.runner.passes[8:] if not one.prompt]
    assert 4 <= len(without) <= 12


def test_a_rest_is_no_pass_that_took_long() -> None:
    world = _world(Costs(), 4.0, running=0)
    for _ in range(6):  # each ends after a token or two, and nobody comes for a long time
        world.add(8, tokens=2)
        world.step(3)
        world.runner.clock.sleep(1000)
    for _ in range(4):
        world.add(8)
    world.step(8)
    assert all(one.seconds <= 4 * Costs().of(4, 0) * 1.01 for one in world.passes(3000)[1:])


def test_a_clock_that_stands_still_bounds_nothing_for_long() -> None:
    passes = _world(Costs(0, 0, 0), 4.0).passes(4000)
    assert max(one.prompt for one in passes) == _MOST - 4


@pytest.mark.parametrize("wrong", [1, 0.5, -4, float("nan"), float("inf")])
def test_a_slowdown_that_cannot_be_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigurationError, match="max_slowdown must be"):
        SchedulerLimits(16, max_slowdown=wrong)
