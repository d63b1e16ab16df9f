"""Transactions: every step is answered for, and where they stop is a place that is defined."""

from __future__ import annotations

import math

import pytest
import torch

from devicekit.release import ReleasePoint
from devicekit.scheduling.messages import (
    Blocker,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
    UpdateOutcome,
    UpdateReply,
)
from devicekit.scheduling.request import FinishKind
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply
from devicekit.weights.operations import UpdateWeightsFromTensor
from devicekit.weights.store import Loaded, StagedTensors
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig, Work

NEW = make_weights(5)
UPDATE = UpdateWeightsFromTensor("ignored", tensors=NEW, weight_version="v2")
BAD = UpdateWeightsFromTensor("ignored", tensors={"head.weight": torch.zeros(1)})


def names(reply: TransactionReply) -> list[tuple[str, bool]]:
    return [(one.name, one.reply.success) for one in reply.steps]


def test_retracting_updating_flushing_and_going_on(rig: Rig) -> None:
    request = rig.add([1, 2, 3, 4, 5], 12)
    rig.step(4)
    _, known = rig.progress(request)
    reply = rig.do(Transaction("t", update=UPDATE), TransactionReply)
    assert names(reply) == [("retract", True), ("update", True), ("flush", True), ("continue", True)]
    assert (reply.success, reply.outcome, reply.paused) == (True, UpdateOutcome.UPDATED, False)
    assert reply.release is not None
    emptied = {point: counter.emptied for point, counter in rig.releases.counters.items() if counter.emptied}
    assert emptied == {ReleasePoint.FLUSH: 1}, "once is enough"
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3, 4, 5], 12, salt_of(NEW), known=known)
    assert rig.last[request].spans[-1].version == "v2"


def test_draining_lets_requests_end_with_the_old_weights(new_rig: MakeRig) -> None:
    rig = new_rig(max_running=2)
    old = rig.salt
    runs = [rig.add([1, 2, 3], 9), rig.add([4, 5, 6], 5)]
    waits = rig.add([7, 8, 9], 5)
    rig.step(2)
    reply = rig.do(Transaction("t", Settle.DRAIN, UPDATE), TransactionReply)
    assert names(reply)[0] == ("drain", True)
    rig.run()
    assert rig.outputs[runs[0]] == expected([1, 2, 3], 9, old)
    assert rig.outputs[runs[1]] == expected([4, 5, 6], 5, old)
    assert rig.outputs[waits] == expected([7, 8, 9], 5, salt_of(NEW))


def test_aborting_ends_requests(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 50)
    rig.step(2)
    assert rig.do(Transaction("t", Settle.ABORT, UPDATE), TransactionReply).success
    assert rig.finishes[request].kind is FinishKind.ABORT


def test_in_place_without_a_flush_keeps_what_runs_running(rig: Rig) -> None:
    old = rig.salt
    request = rig.add([1, 2, 3], 12)
    rig.step(4)
    kept, known = rig.progress(request)
    reply = rig.do(Transaction("t", Settle.IN_PLACE, UPDATE, flush=False), TransactionReply, steps=1)
    assert (reply.success, reply.outcome) == (True, UpdateOutcome.UPDATED)
    rig.run()
    mixed = expected([1, 2, 3], 12, salt_of(NEW), known=known, kept=kept, kept_salt=old)
    assert rig.outputs[request] == mixed


def test_a_drain_that_takes_too_long_leaves_everything_running(rig: Rig) -> None:
    old = rig.salt
    request = rig.add([1, 2, 3], 40)
    rig.step(2)
    rig.post(Transaction("t", Settle.DRAIN, UPDATE, timeout=3.0))
    rig.step(2)
    rig.clock.sleep(4)
    rig.step()
    reply = rig.replies["t"]
    assert isinstance(reply, TransactionReply)
    assert (reply.failed, reply.refusal, reply.paused) == ("drain", Refusal.TIMED_OUT, False)
    assert reply.outcome is UpdateOutcome.UNCHANGED
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 40, old)


def test_an_update_that_does_not_fit_is_refused_before_anything_is_paused(rig: Rig) -> None:
    old = rig.salt
    request = rig.add([1, 2, 3], 12)
    rig.step(4)
    reply = rig.do(Transaction("t", update=BAD), TransactionReply)
    assert names(reply) == [("update", False)]
    assert (reply.failed, reply.refusal, reply.paused) == ("update", Refusal.INVALID, False)
    assert rig.scheduler.state.gate.epoch == 0, "it was paused"
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 12, old)
    again = UpdateWeightsFromTensor("t/update", tensors=NEW)
    assert rig.do(again, UpdateReply).outcome is UpdateOutcome.UPDATED, (
        "under the same id it is held back still"
    )


def test_an_update_that_cannot_be_written_is_undone_and_generation_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = rig.salt

    def broken(staged: StagedTensors) -> Loaded:
        raise RuntimeError("a copy failed")

    monkeypatch.setattr(StagedTensors, "write", broken)
    request = rig.add([1, 2, 3], 12)
    rig.step(4)
    reply = rig.do(Transaction("t", update=UPDATE), TransactionReply)
    assert names(reply) == [("retract", True), ("update", False), ("undo", True)]
    assert (reply.failed, reply.refusal, reply.paused) == ("update", Refusal.FAILED, False)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 12, old)


def test_an_engine_that_was_paused_before_stays_paused_when_it_fails(rig: Rig) -> None:
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    reply = rig.do(Transaction("t", update=BAD), TransactionReply)
    assert reply.paused
    assert [one for one, _ in names(reply)] == ["update"]


def test_new_weights_that_cannot_be_flushed_leave_it_paused_and_say_what_is_in_the_way(rig: Rig) -> None:
    rig.scheduler.register(Work(unfinished=2).participant())
    request = rig.add([1, 2, 3], 12)
    rig.step(3)
    reply = rig.do(Transaction("t", update=UPDATE), TransactionReply)
    assert (reply.failed, reply.outcome) == ("flush", UpdateOutcome.UPDATED_NOT_FLUSHED)
    assert (reply.refusal, reply.blockers) == (Refusal.BUSY, (Blocker("copies", 2),))
    assert reply.paused
    rig.step(5)
    assert request not in rig.finishes


def test_a_flush_that_has_time_waits_for_copies(rig: Rig) -> None:
    work = Work(unfinished=2)
    rig.scheduler.register(work.participant())
    rig.post(Transaction("t", update=UPDATE, timeout=9.0))
    rig.step(3)
    assert "t" not in rig.replies
    work.finish()
    rig.clock.sleep(1)
    rig.step()
    reply = rig.replies["t"]
    assert isinstance(reply, TransactionReply)
    assert reply.success
    assert next(one.reply.seconds for one in reply.steps if one.name == "flush") == pytest.approx(1)


def test_it_can_end_paused(rig: Rig) -> None:
    reply = rig.do(Transaction("t", resume=False), TransactionReply)
    assert (reply.success, reply.paused) == (True, True)
    assert [one for one, _ in names(reply)] == ["retract", "flush"]


def test_only_one_at_a_time(rig: Rig) -> None:
    rig.add([1, 2, 3], 20)
    rig.step(2)
    rig.post(Transaction("a", Settle.DRAIN))
    rig.post(Transaction("b"))
    rig.step()
    assert rig.replies["b"].refusal is Refusal.CONFLICT
    rig.run()
    rig.step()
    assert rig.replies["a"].success
    assert rig.do(Transaction("c"), TransactionReply).success


def test_a_timeout_that_is_no_number_of_seconds_is_invalid(rig: Rig) -> None:
    assert rig.do(Transaction("t", timeout=math.nan), TransactionReply).refusal is Refusal.INVALID
    assert rig.do(Transaction("u"), TransactionReply).success
