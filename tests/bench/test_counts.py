"""What the scheduler itself costs, in calls: time is too noisy for a test, and a release must not cost more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from bench.scheduler import churn, steady
from devicekit.device import get_device

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


def test_a_step_with_requests_that_come_and_go_costs_no_more_than_it_did() -> None:
    groups = churn(get_device("cpu"), 64)
    for _ in range(8):
        groups()
    assert _calls(groups) / _STEPS <= _CHURN
