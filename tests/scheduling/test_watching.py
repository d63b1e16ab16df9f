"""Whoever watches an engine's operations is told of each once, and can do no harm."""

from __future__ import annotations

import logging

import pytest

from devicekit.observe.recorder import Recorder
from devicekit.observe.timeline import MarkKind
from devicekit.scheduling.messages import Continue, Flush, Pause, PauseMode, Reply
from tests.scheduling.rig import Rig


def test_a_recorder_marks_what_an_attached_engine_does(rig: Rig) -> None:
    with Recorder(rig.weights.store.device, releases=rig.releases) as recorder:
        recorder.attach(rig.scheduler.control)
        rig.add([1, 2, 3], 30)
        rig.step(2)
        rig.post(Flush("late", timeout=60.0))
        rig.step()
        rig.do(Flush("busy"), Reply)
        rig.clock.sleep(2.0)
        rig.run()
        rig.step()
        rig.do(Pause("p", PauseMode.IN_PLACE), Reply)
    rig.do(Continue("unseen"), Reply)
    marks = [mark for mark in recorder.timeline.marks if mark.kind is MarkKind.VERB]
    found = {mark.label: mark.seconds for mark in marks if mark.label[0].isupper()}
    assert list(found) == ["Flush (refused)", "Flush", "Pause"]
    assert found["Flush"] == pytest.approx(2.0, abs=0.1)


def test_a_listener_that_fails_is_told_of_nothing_more(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def listener(name: str, seconds: float, success: bool) -> None:
        told.append(name)
        raise RuntimeError("full")

    rig.scheduler.control.watch(listener)
    with caplog.at_level(logging.ERROR):
        assert rig.do(Pause("p"), Reply).success
        assert rig.do(Continue("c"), Reply).success
    assert told == ["Pause"]
    assert "watches no more" in caplog.text
