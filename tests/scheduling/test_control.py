"""Control operations: each answered exactly once, whatever is asked, and the loop lives on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from devicekit.device import Device
from devicekit.scheduling.messages import Flush, FlushReply, Operation, Pause, PauseMode, Refusal, Reply
from devicekit.scheduling.request import FinishKind
from devicekit.scheduling.state import Participant
from tests.hash_runner import expected
from tests.scheduling.rig import Rig


@dataclass(frozen=True, slots=True)
class Odd(Operation):
    """An operation nobody registered."""


def test_an_unknown_operation_is_refused_and_the_known_ones_are_named(rig: Rig) -> None:
    reply = rig.do(Odd("o"), Reply)
    assert reply.refusal is Refusal.UNSUPPORTED
    assert "Odd" in reply.message
    assert "Flush" in reply.message


def test_a_handler_that_raises_is_a_refusal_and_not_the_end(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(operation: Odd) -> Reply:
        raise ZeroDivisionError("one over nothing")

    rig.scheduler.control.register(Odd, broken)
    request = rig.add([1, 2, 3], 4)
    reply = rig.do(Odd("o"), Reply)
    assert reply.refusal is Refusal.FAILED
    assert "one over nothing" in reply.message
    assert "Odd o failed" in caplog.text
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 4, rig.salt)


def test_a_poll_that_raises_later_is_answered_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def poll() -> Reply | None:
        asked.append(1)
        if len(asked) < 4:
            return None
        raise RuntimeError("later")

    rig.scheduler.control.register(Odd, lambda operation: poll)
    rig.post(Odd("o"))
    rig.step(6)
    assert rig.replies["o"].refusal is Refusal.FAILED
    assert len(asked) == 4


def test_answers_come_in_order_of_arrival_those_that_need_not_wait_first(rig: Rig) -> None:
    for number in range(5):
        rig.post(Pause(f"p{number}", PauseMode.IN_PLACE))
        rig.post(Flush(f"f{number}", 3.0))
    rig.step()
    assert list(rig.replies) == ["p0", "p1", "p2", "p3", "p4", "f0", "f1", "f2", "f3", "f4"]


def test_a_participant_that_fails_blocks_and_is_named_but_does_not_stop_the_engine(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [True]

    def retire() -> None:
        if failing:
            raise RuntimeError("event is gone")

    rig.scheduler.register(Participant("copies", pending=lambda: len(failing), retire=retire))
    request = rig.add([1, 2, 3], 4)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 4, rig.salt)
    assert rig.scheduler.state.participants.faults == {"copies": "RuntimeError: event is gone"}
    assert caplog.text.count("could not collect") == 1
    assert rig.do(Flush("f"), Reply).refusal is Refusal.BUSY
    failing.clear()
    assert rig.do(Flush("g"), Reply).success
    assert not rig.scheduler.state.participants.faults


def test_a_participant_that_cannot_say_what_it_has_blocks_and_does_not_stop_the_engine(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [True]

    def pending() -> int:
        if failing:
            raise RuntimeError("the queue is gone")
        return 0

    rig.scheduler.register(Participant("grammar", pending=pending))
    request = rig.add([1, 2, 3], 4)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 4, rig.salt)
    assert rig.do(Flush("f"), Reply).refusal is Refusal.BUSY
    assert list(rig.scheduler.state.participants.faults.values()) == ["RuntimeError: the queue is gone"]
    assert caplog.text.count("asked for its work, failed") == 1
    failing.clear()
    assert rig.do(Flush("g"), Reply).success
    assert not rig.scheduler.state.participants.faults


def test_what_waits_for_an_answer_can_be_seen(rig: Rig) -> None:
    rig.add([1, 2, 3], 20)
    rig.post(Flush("f", 9.0))
    rig.step()
    assert [one.id for one in rig.scheduler.control.pending] == ["f"]
    rig.run()
    rig.step()
    assert rig.scheduler.control.pending == ()


@pytest.mark.parametrize("fails", ["__enter__", "__exit__"])
def test_a_device_that_cannot_be_made_current_does_not_end_the_loop(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    class Switch:
        def __enter__(self) -> None:
            self._at("__enter__")

        def __exit__(self, *error: object) -> None:
            self._at("__exit__")

        def _at(self, name: str) -> None:
            if name == fails:
                raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Device, "current_where_possible", lambda device: Switch())
    request = rig.add([1, 2, 3], 4)
    rig.run()
    assert rig.finishes[request].kind is FinishKind.LENGTH
    assert rig.do(Flush("f"), FlushReply).success
