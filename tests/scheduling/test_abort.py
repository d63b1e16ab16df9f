"""Abort: which requests an operation names, wherever they are, and that each ends once."""

from __future__ import annotations

import pytest

from devicekit.scheduling.messages import Abort, AbortReply, Pause, PauseMode, PauseReply, Refusal
from devicekit.scheduling.request import FinishKind
from tests.hash_runner import expected
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig


@pytest.fixture
def crowd(new_rig: MakeRig) -> Rig:
    """Requests that run, one in the middle of its prompt, and some that wait."""
    rig = new_rig(max_running=3, max_batch_tokens=16)
    for identity, length in (("a-1", 4), ("a-2", 4), ("a", 60), ("b-1", 4), ("b-2", 4)):
        rig.add(range(length, 2 * length), 20, id=identity)
    rig.step(2)
    state = rig.scheduler.state
    assert (len(state.running), len(state.prefilling), len(state.waiting)) == (2, 1, 2)
    return rig


def test_by_id_ends_that_one_only(crowd: Rig) -> None:
    assert crowd.do(Abort("x", "a"), AbortReply).aborted == 1
    assert set(crowd.finishes) == {"a"}
    crowd.run()
    crowd.check()
    assert crowd.outputs["a-1"] == expected(range(4, 8), 20, crowd.salt)


def test_by_prefix_ends_all_that_start_with_it(crowd: Rig) -> None:
    assert crowd.do(Abort("x", prefix="a"), AbortReply).aborted == 3
    assert set(crowd.finishes) == {"a", "a-1", "a-2"}
    crowd.check()
    crowd.run()


def test_all_ends_all(crowd: Rig) -> None:
    assert crowd.do(Abort("x", all=True), AbortReply).aborted == 5
    assert {one.kind for one in crowd.finishes.values()} == {FinishKind.ABORT}
    crowd.check()
    assert crowd.scheduler.blockers() == ()


def test_aborting_nobody_is_success_with_a_count_of_zero(crowd: Rig) -> None:
    reply = crowd.do(Abort("x", "unknown"), AbortReply)
    assert (reply.success, reply.aborted) == (True, 0)
    assert crowd.do(Abort("y", "a-1"), AbortReply).aborted == 1
    assert crowd.do(Abort("z", "a-1"), AbortReply).aborted == 0


@pytest.mark.parametrize("names", [{}, {"request_id": ""}, {"prefix": ""}])
def test_an_abort_that_names_nothing_is_invalid(crowd: Rig, names: dict[str, str]) -> None:
    reply = crowd.do(Abort("x", **names), AbortReply)  # type: ignore[arg-type]
    assert (reply.success, reply.refusal) == (False, Refusal.INVALID)
    assert not crowd.finishes


def test_waiting_and_running_requests_end_while_paused(crowd: Rig) -> None:
    crowd.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    crowd.do(Abort("x", all=True), AbortReply)
    assert len(crowd.finishes) == 5
    crowd.check()
