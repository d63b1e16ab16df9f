"""Sessions of several updates: optional, exclusive, and summed up at their end."""

from __future__ import annotations

import torch

from devicekit.scheduling.messages import Refusal, UpdateOutcome, UpdateReply
from devicekit.weights.operations import (
    BeginWeightUpdate,
    EndWeightUpdate,
    SessionReply,
    UpdateWeightsFromTensor,
)
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.rig import Rig

NEW = make_weights(5)


def send(rig: Rig, name: str) -> UpdateReply:
    return rig.do(UpdateWeightsFromTensor(f"u-{name}", tensors={name: NEW[name]}), UpdateReply)


def test_nothing_is_generated_between_the_first_update_and_the_last(rig: Rig) -> None:
    assert rig.do(BeginWeightUpdate("b"), SessionReply).success
    request = rig.add([1, 2, 3], 6)
    versions = set()
    for name in NEW:
        reply = send(rig, name)
        assert reply.outcome is UpdateOutcome.UPDATED
        versions.add(reply.weight_version)
        rig.step(2)
    assert not rig.outputs
    reply = rig.do(EndWeightUpdate("e"), SessionReply)
    assert (reply.outcome, reply.updates, reply.tensors) == (UpdateOutcome.UPDATED, 3, 3)
    assert versions == {reply.weight_version}, "one session is one version"
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 6, salt_of(NEW))


def test_a_session_waits_for_running_requests(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 6)
    rig.step(2)
    rig.post(BeginWeightUpdate("b"))
    rig.step()
    assert "b" not in rig.replies
    rig.run()
    rig.step()
    assert request in rig.finishes
    assert rig.replies["b"].success
    assert rig.scheduler.state.gate.admitting


def test_begin_in_a_session_and_end_without_one_are_conflicts(rig: Rig) -> None:
    assert rig.do(EndWeightUpdate("e0"), SessionReply).refusal is Refusal.CONFLICT
    rig.do(BeginWeightUpdate("b1"), SessionReply)
    assert rig.do(BeginWeightUpdate("b2"), SessionReply).refusal is Refusal.CONFLICT
    assert rig.do(EndWeightUpdate("e1"), SessionReply).outcome is UpdateOutcome.UNCHANGED
    assert not rig.scheduler.state.gate.holds


def test_a_session_with_a_failure_in_the_middle_is_partial(rig: Rig) -> None:
    rig.do(BeginWeightUpdate("b"), SessionReply)
    send(rig, "embed.weight")
    bad = UpdateWeightsFromTensor("bad", tensors={"head.weight": torch.zeros(1)})
    assert not rig.do(bad, UpdateReply).success
    reply = rig.do(EndWeightUpdate("e"), SessionReply)
    assert (reply.success, reply.outcome) == (False, UpdateOutcome.PARTIAL)
    assert (reply.updates, reply.failures) == (1, 1)


def test_updates_need_no_session(rig: Rig) -> None:
    assert send(rig, "head.weight").outcome is UpdateOutcome.UPDATED
