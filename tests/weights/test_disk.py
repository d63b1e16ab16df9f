"""Weights from disk: what became of them when a loader refuses, fails half-way, or fails on the draft alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from devicekit.contract.errors import ConfigurationError
from devicekit.scheduling.messages import Refusal, Selector, UpdateOutcome, UpdateReply, UpdateWeightsFromDisk
from devicekit.weights.disk import disk_handler
from devicekit.weights.operations import UpdateWeightsFromTensor
from tests.hash_runner import HashRunner, expected, make_weights, salt_of
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig

NEW = make_weights(5)


@dataclass(frozen=True)
class Written:
    tensors: int
    bytes: int


@dataclass
class StagedCheckpoint:
    runner: HashRunner
    breaks: bool

    def write(self) -> Written:
        for name, tensor in NEW.items():
            with torch.no_grad():
                self.runner.weights[name].copy_(tensor)
            if self.breaks:
                raise OSError("the device went away")
        return Written(3, 184)

    def settle(self) -> None: ...


@dataclass
class Loader:
    """Loads one checkpoint, and knows three ways not to."""

    runner: HashRunner
    refuses: str = ""

    def stage_from_disk(self, path: str, within: Sequence[str] = ()) -> StagedCheckpoint:
        if path in ("missing", self.refuses):
            raise ConfigurationError(f"no model directory at {path}")
        return StagedCheckpoint(self.runner, breaks=path == "breaking")


@pytest.fixture
def rig(new_rig: MakeRig) -> Rig:
    rig = new_rig(draft=True)
    assert rig.draft is not None
    loaders = {Selector.TARGET: Loader(rig.runner), Selector.DRAFT: Loader(rig.draft, refuses="target only")}
    rig.scheduler.control.register(UpdateWeightsFromDisk, disk_handler(rig.weights.updater, loaders))
    return rig


def update(rig: Rig, path: str, selector: Selector = Selector.ALL) -> UpdateReply:
    operation = UpdateWeightsFromDisk(f"u-{path}-{selector.value}", path=path, selector=selector)
    return rig.do(operation, UpdateReply)


def test_both_models_are_loaded(rig: Rig) -> None:
    reply = update(rig, "good")
    assert (reply.outcome, reply.tensors, reply.bytes) == (UpdateOutcome.UPDATED, 6, 368)
    assert rig.draft is not None
    assert rig.salt == salt_of(rig.draft.weights) == salt_of(NEW)


def test_one_of_them_is_loaded(rig: Rig) -> None:
    before = rig.salt
    assert update(rig, "good", Selector.DRAFT).tensors == 3
    assert rig.salt == before


def test_a_path_that_is_not_there_changes_nothing(rig: Rig) -> None:
    before = rig.snapshot()
    assert update(rig, "missing").refusal is Refusal.FAILED
    assert rig.snapshot() == before
    assert update(rig, "").refusal is Refusal.INVALID


def test_a_draft_that_cannot_be_loaded_leaves_the_target_as_it_is(rig: Rig) -> None:
    before = rig.snapshot()
    assert update(rig, "target only").refusal is Refusal.FAILED
    assert rig.snapshot() == before


def test_what_was_written_by_halves_is_taken_back(rig: Rig) -> None:
    before = rig.snapshot()
    reply = update(rig, "breaking")
    assert (reply.success, reply.outcome, reply.refusal) == (False, UpdateOutcome.UNCHANGED, Refusal.FAILED)
    assert "taken back" in reply.message
    assert rig.snapshot() == before


def test_what_is_too_large_to_be_kept_is_partial_and_holds_generation(rig: Rig) -> None:
    rig.weights.store.rollback_bytes = 367  # both models have 368
    reply = update(rig, "breaking")
    assert (reply.success, reply.outcome) == (False, UpdateOutcome.PARTIAL)
    request = rig.add([1, 2, 3], 5)
    rig.step(4)
    assert request not in rig.outputs
    assert update(rig, "good").success
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 5, salt_of(NEW))


def test_weights_of_two_versions_are_repaired_by_either_source(rig: Rig) -> None:
    rig.weights.store.rollback_bytes = 0
    update(rig, "breaking")
    reply = rig.do(UpdateWeightsFromTensor("t", tensors=NEW), UpdateReply)
    assert (reply.success, reply.tensors) == (True, 6)
    assert rig.scheduler.state.gate.may_run


def test_a_model_that_nobody_can_load_is_said(new_rig: MakeRig) -> None:
    rig = new_rig()
    reply = rig.do(UpdateWeightsFromDisk("u", path="x"), UpdateReply)
    assert reply.refusal is Refusal.INVALID
    assert "target model cannot be loaded" in reply.message
