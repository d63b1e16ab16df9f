"""Sleeping instead of spinning: until something is posted, falls due, or has to be looked at; paused or not."""

from __future__ import annotations

import pytest

from devicekit.scheduling.messages import Drain, Flush, Pause, PauseMode, PauseReply
from devicekit.scheduling.resting import LOOK, idle_seconds
from devicekit.weights.operations import MemoryReply, ReleaseMemory, ResumeMemory
from tests.scheduling.rig import Rig, Work


def idle(rig: Rig) -> float | None:
    return idle_seconds(rig.scheduler.state, rig.scheduler.control)


def test_an_idle_scheduler_sleeps_until_something_is_posted(rig: Rig) -> None:
    assert idle(rig) is None
    rig.add([1, 2, 3], 5)
    assert idle(rig) == 0
    rig.step(2)
    assert idle(rig) == 0
    rig.run()
    assert idle(rig) is None


@pytest.mark.parametrize("mode", [PauseMode.IN_PLACE, PauseMode.RETRACT])
def test_a_paused_scheduler_sleeps_whatever_waits(rig: Rig, mode: PauseMode) -> None:
    rig.add([1, 2, 3], 5)
    rig.step(2)
    rig.do(Pause("p", mode), PauseReply)
    rig.add([4, 5, 6])
    assert idle(rig) is None


def test_it_wakes_for_deadlines_and_for_the_end_of_a_pause(rig: Rig) -> None:
    rig.do(Pause("p", PauseMode.IN_PLACE, continue_after=30.0), PauseReply)
    assert idle(rig) == 30
    rig.add([1, 2, 3], timeout=12.0)
    assert idle(rig) == 12
    rig.clock.sleep(13)
    assert idle(rig) == 0
    rig.step()
    assert idle(rig) == 17


def test_a_pause_that_should_end_but_cannot_does_not_keep_it_awake(rig: Rig) -> None:
    rig.do(ReleaseMemory("r"), MemoryReply)
    rig.do(Pause("p", PauseMode.IN_PLACE, continue_after=3.0), PauseReply)
    rig.clock.sleep(4)
    rig.step()
    assert rig.scheduler.state.paused
    assert idle(rig) is None
    rig.do(ResumeMemory("s", ("kv_cache",)), MemoryReply)
    assert idle(rig) is None, "the weights are still gone"


def test_it_looks_now_and_then_at_what_others_do(rig: Rig) -> None:
    work = Work(unfinished=1)
    rig.scheduler.register(work.participant())
    assert idle(rig) == LOOK
    rig.post(Flush("f", 5.0))
    rig.step()
    work.finish()
    rig.step()
    assert idle(rig) is None
    rig.add([1, 2, 3], 5)
    rig.step(2)
    rig.post(Drain("d"))
    rig.step()
    assert idle(rig) == 0, "what it waits for is a forward pass"
    rig.run()
