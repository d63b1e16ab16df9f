"""Operations that nobody waits for: their waiting ends, and what has begun comes to its end."""

from __future__ import annotations

import pytest

from devicekit.scheduling.messages import (
    Continue,
    Drain,
    Flush,
    FlushReply,
    Operation,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
    Reply,
    Withdraw,
)
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply
from tests.scheduling.rig import Rig

WAITING = {
    "flush": Flush("one", 100.0),
    "drain": Drain("one"),
    "transaction": Transaction("one", settle=Settle.DRAIN, timeout=100.0),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_refused_at_once_and_changes_nothing(rig: Rig, name: str) -> None:
    running = rig.add([1, 2, 3], 8)
    rig.step(2)
    rig.post(WAITING[name])
    rig.step()
    assert "one" not in rig.replies
    assert rig.do(Withdraw("w", "one"), Reply).success
    reply = rig.replies["one"]
    assert (reply.success, reply.refusal) == (False, Refusal.WITHDRAWN)
    assert not rig.scheduler.state.paused
    assert rig.scheduler.state.gate.admitting
    later = rig.add([4, 5], 2)
    rig.run()
    assert {running, later} <= rig.finishes.keys()
    assert not rig.scheduler.control.pending


def test_another_that_waits_for_the_same_waits_on(rig: Rig) -> None:
    rig.add([1, 2, 3], 8)
    rig.step(2)
    for name in ("one", "two"):
        rig.post(Flush(name, 100.0))
    rig.step()
    rig.do(Withdraw("w", "one"), Reply)
    assert "two" not in rig.replies
    rig.run()
    assert rig.replies["two"].success
    assert rig.replies["one"].refusal is Refusal.WITHDRAWN


@pytest.mark.parametrize("named", ["nobody", "", "o", "one/drain"])
def test_what_does_not_wait_cannot_be_withdrawn(rig: Rig, named: str) -> None:
    rig.add([1, 2, 3], 3)
    rig.step(2)
    rig.post(Flush("one", 100.0))
    rig.step()
    reply = rig.do(Withdraw("w", named), Reply)
    assert (reply.success, reply.refusal) == (False, Refusal.CONFLICT)
    rig.run()
    assert rig.replies["one"].success


def test_what_may_be_done_in_the_same_step_is_done(rig: Rig) -> None:
    """Nothing is in the way any more when it is looked at: that it was withdrawn is no reason to refuse it."""
    rig.add([1, 2, 3], 8)
    rig.step(2)
    rig.post(Flush("one", 100.0))
    rig.step()
    rig.do(Pause("p", PauseMode.ABORT), PauseReply)
    assert rig.replies["one"].success


def test_a_name_that_was_withdrawn_may_be_used_again(rig: Rig) -> None:
    rig.add([1, 2, 3], 9)
    rig.step(2)
    operations: list[Operation] = [Flush("one", 100.0), Withdraw("w", "one")]
    for operation in operations:
        rig.post(operation)
    rig.step(2)
    assert rig.replies.pop("one").refusal is Refusal.WITHDRAWN
    rig.post(Flush("one", 100.0))
    rig.step()
    assert "one" not in rig.replies
    rig.run()
    reply = rig.replies["one"]
    assert isinstance(reply, FlushReply)
    assert reply.success


def test_a_transaction_that_has_settled_goes_on(rig: Rig) -> None:
    rig.add([1, 2, 3], 8)
    rig.step(2)
    reply = rig.do(Transaction("one", settle=Settle.RETRACT), TransactionReply)
    assert reply.success
    assert rig.do(Withdraw("w", "one"), Reply).refusal is Refusal.CONFLICT
    assert rig.do(Continue("c"), PauseReply).success
