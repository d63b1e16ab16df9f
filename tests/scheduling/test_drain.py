"""Drain: what runs ends, what waits waits, and a drain that gives up leaves generation running."""

from __future__ import annotations

import math

import pytest

from devicekit.scheduling.messages import (
    Continue,
    Drain,
    DrainReply,
    Flush,
    FlushReply,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
)
from tests.hash_runner import expected
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig


def test_running_requests_end_and_waiting_ones_stay(new_rig: MakeRig) -> None:
    rig = new_rig(max_running=2)
    ran = [rig.add([1, 2, 3], 6), rig.add([4, 5, 6], 9)]
    waits = rig.add([7, 8, 9], 6)
    rig.step(2)
    reply = rig.do(Drain("d"), DrainReply)
    assert (reply.success, reply.remaining, reply.waiting) == (True, 0, 1)
    assert set(rig.finishes) == set(ran)
    assert rig.scheduler.state.paused
    assert rig.do(Flush("f"), FlushReply).success
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert rig.outputs[waits] == expected([7, 8, 9], 6, rig.salt)


def test_a_drain_that_runs_out_of_time_counts_what_is_left_and_reopens_the_door(new_rig: MakeRig) -> None:
    rig = new_rig(max_running=2)
    for _ in range(3):
        rig.add([1, 2, 3], 30)
    rig.step(2)
    rig.post(Drain("d", 5.0))
    rig.step()
    rig.clock.sleep(6)
    rig.step()
    reply = rig.replies["d"]
    assert isinstance(reply, DrainReply)
    assert (reply.success, reply.refusal, reply.remaining, reply.waiting) == (False, Refusal.TIMED_OUT, 2, 1)
    assert not rig.scheduler.state.paused
    rig.run()
    assert len(rig.finishes) == 3


def test_an_idle_scheduler_is_drained_at_once(rig: Rig) -> None:
    assert rig.do(Drain("d"), DrainReply).success
    assert rig.scheduler.state.paused


def test_draining_requests_that_are_paused_in_place_is_refused_rather_than_waited_for(rig: Rig) -> None:
    rig.add([1, 2, 3], 30)
    rig.step(2)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    reply = rig.do(Drain("d", 100.0), DrainReply, steps=1)
    assert (reply.refusal, reply.remaining) == (Refusal.CONFLICT, 1)
    rig.do(Continue("c"), PauseReply)
    rig.run()


def test_two_drains_end_together(rig: Rig) -> None:
    rig.add([1, 2, 3], 5)
    rig.post(Drain("a"))
    rig.post(Drain("b", 100.0))
    rig.step(20)
    assert rig.replies["a"].success
    assert rig.replies["b"].success
    assert rig.scheduler.state.gate.admitting


@pytest.mark.parametrize("timeout", [math.nan, math.inf])
def test_a_timeout_that_is_no_number_of_seconds_is_invalid(rig: Rig, timeout: float) -> None:
    assert rig.do(Drain("d", timeout), DrainReply).refusal is Refusal.INVALID
