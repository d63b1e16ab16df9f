"""What the scheduler itself costs, in calls: time is too noisy for a test, and a release must not cost more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

from bench.scheduler import ConstantRunner, churn, steady
from devicekit.device import get_device
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.soak.world import KnownBytes as Words

_STEPS = 16  # of a group that `churn` runs at once
# As they were when this was written, and a tenth more: of Python's functions and C's, in a step.
_STEADY, _CHURN = 68, 173


def _calls(function: Callable[[], object]) -> int:
    count = 0

    def profile(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("running", [64, 1024])
def test_a_decode_step_costs_no_more_than_it_did_however_many_run(running: int) -> None:
    scheduler = steady(get_device("cpu"), running)
    for _ in range(20):
        scheduler.step()
    assert sum(_calls(scheduler.step) for _ in range(_STEPS)) / _STEPS <= _STEADY


@pytest.mark.parametrize(
    "wish",
    [
        {"stream": True},
        {"params": SamplingParams(max_new_tokens=900, temperature=0, ignore_eos=True)},
        {"params": SamplingParams(max_new_tokens=900, temperature=0, stop_token_ids=(11, 13))},
        {"params": SamplingParams(max_new_tokens=900, temperature=0, stop=("###",))},
        {"params": SamplingParams(max_new_tokens=900, temperature=0.5, top_p=0.9)},
    ],
    ids=lambda wish: next(iter(wish)) if "stream" in wish else str(wish["params"].text_options.stop),
)
def test_a_step_costs_the_same_however_many_stream_are_sampled_or_have_stops(wish: dict[str, Any]) -> None:
    def cost(running: int) -> int:
        limits = SchedulerLimits(
            running * 64, max_running=running, max_batch_tokens=4 * running, conservativeness=0.01
        )
        scheduler = Scheduler(ConstantRunner(running), get_device("cpu"), limits, detokenizer=Words())
        for number in range(running):
            prompt = np.full(3, 5, np.int32)
            wanted = {"params": SamplingParams(max_new_tokens=900, temperature=0), **wish}
            scheduler.add(Request(f"{number}", prompt, **wanted))
        for _ in range(4):
            scheduler.step()
        assert len(scheduler.state.running) == running
        return sum(_calls(scheduler.step) for _ in range(_STEPS))

    few, many = cost(8), cost(256)
    print(few, many)
    assert many <= few + _STEPS * 12  # pages are given to more at once


def test_a_step_with_requests_that_come_and_go_costs_no_more_than_it_did() -> None:
    groups = churn(get_device("cpu"), 64)
    for _ in range(8):
        groups()
    assert _calls(groups) / _STEPS <= _CHURN
