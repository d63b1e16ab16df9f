"""What every weight update shares: when it runs, what becomes of requests and caches, what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from devicekit.contract.records import ReleaseResult
from devicekit.device import Device
from devicekit.release import ReleasePoint, SkipReason
from devicekit.scheduling.messages import (
    Blocker,
    Continue,
    Drain,
    DrainReply,
    Flush,
    FlushReply,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
    Selector,
    UpdateOutcome,
    UpdateReply,
)
from devicekit.scheduling.request import FinishKind, VersionSpan
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply
from devicekit.weights.operations import (
    CommitWeights,
    PrepareWeights,
    UpdateWeights,
    UpdateWeightsFromDistributed,
    UpdateWeightsFromTensor,
)
from devicekit.weights.store import Staged
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig

NEW = make_weights(5)


def update(identity: str = "u", **fields: object) -> UpdateWeightsFromTensor:
    return UpdateWeightsFromTensor(identity, tensors=NEW, **fields)  # type: ignore[arg-type]


def test_an_idle_engine_updates_flushes_and_does_not_empty(rig: Rig) -> None:
    rig.add(range(1, 20))
    rig.run()
    reply = rig.do(update(weight_version="step-7"), UpdateReply)
    assert (reply.success, reply.outcome) == (True, UpdateOutcome.UPDATED)
    assert (reply.tensors, reply.bytes) == (3, 8 * 4 * 4 + 6 * 4 + 4 * 4 * 2)
    assert reply.weight_version == rig.scheduler.state.weight_version == "step-7"
    assert reply.flush is not None
    assert reply.flush.pages_freed > 0
    assert rig.releases.counters[ReleasePoint.WEIGHT_UPDATE].emptied == 0
    assert rig.salt == salt_of(NEW)
    request = rig.add(range(1, 20))
    rig.run()
    assert rig.outputs[request] == expected(range(1, 20), 8, salt_of(NEW))


def test_an_update_waits_for_running_requests_while_new_ones_wait_for_it(rig: Rig) -> None:
    before = rig.salt
    running = rig.add([1, 2, 3], 8)
    rig.step(2)
    rig.post(update())
    rig.step()
    late = rig.add([4, 5, 6], 8)
    rig.run()
    reply = rig.replies["u"]
    assert isinstance(reply, UpdateReply)
    # The requests that waited for the update did not keep it from flushing.
    assert reply.outcome is UpdateOutcome.UPDATED
    assert rig.outputs[running] == expected([1, 2, 3], 8, before)
    assert rig.outputs[late] == expected([4, 5, 6], 8, salt_of(NEW))


def test_paused_in_place_requests_go_on_with_new_weights_on_old_keys(rig: Rig) -> None:
    old = rig.salt
    request = rig.add([1, 2, 3, 4, 5, 6], 10)
    rig.step(4)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    kept, known = rig.progress(request)
    reply = rig.do(update(flush_cache=False, weight_version="v2"), UpdateReply)
    assert reply.outcome is UpdateOutcome.UPDATED
    prefix = rig.scheduler.state.kv.prefix
    assert prefix is not None
    cached = prefix.total
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert prefix.total == cached, "what mixes two versions is of use to nobody"
    mixed = expected(range(1, 7), 10, salt_of(NEW), known=known, kept=kept, kept_salt=old)
    assert rig.outputs[request] == mixed
    assert rig.last[request].spans == (
        VersionSpan("default", 0, len(known)),
        VersionSpan("v2", len(known), 10),
    )
    again = rig.add(range(1, 7), 10)
    rig.run()
    assert rig.outputs[again] == expected(range(1, 7), 10, salt_of(NEW))


def test_a_flush_that_paused_requests_block_leaves_new_weights_and_says_so(rig: Rig) -> None:
    rig.add([1, 2, 3], 10)
    rig.step(3)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    reply = rig.do(update(), UpdateReply)
    assert (reply.success, reply.outcome) == (False, UpdateOutcome.UPDATED_NOT_FLUSHED)
    assert (reply.refusal, reply.blockers) == (Refusal.BUSY, (Blocker("running", 1),))
    assert "the cache was not flushed: running=1. Retract or finish these requests" in reply.message
    assert rig.salt == salt_of(NEW)
    rig.do(Continue("c"), PauseReply)
    rig.run()


def test_retracted_requests_are_computed_again_by_the_new_weights(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 10)
    rig.step(5)
    rig.do(Pause("p", PauseMode.RETRACT), PauseReply)
    known = rig.scheduler.state.requests[request].tokens[3:].tolist()
    assert rig.do(update(), UpdateReply).outcome is UpdateOutcome.UPDATED
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 10, salt_of(NEW), known=known)


def test_what_is_computed_anew_by_the_new_weights_alone_is_shared_again(rig: Rig) -> None:
    prompt = range(1, 30)
    first = rig.add(prompt, 10)
    rig.step(3)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    rig.do(update(flush_cache=False), UpdateReply)
    rig.do(Pause("r", PauseMode.RETRACT), PauseReply)  # what it held was of two weights; it begins again
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert len(rig.outputs[first]) == 10
    again = rig.add(prompt, 2)
    rig.run()
    assert rig.last[again].cached_tokens >= 24


def test_without_a_flush_old_prefixes_are_not_used_by_new_weights(rig: Rig) -> None:
    rig.add(range(1, 30))
    rig.run()
    rig.do(update(flush_cache=False, weight_version="same"), UpdateReply)
    for _ in range(2):  # the second time the name of the version does not change, and the weights do
        request = rig.add(range(1, 30))
        rig.run()
        assert rig.last[request].cached_tokens == 0
        assert rig.outputs[request] == expected(range(1, 30), 8, rig.salt)
        other = UpdateWeightsFromTensor(
            f"again-{request}", tensors=make_weights(6), flush_cache=False, weight_version="same"
        )
        rig.do(other, UpdateReply)


def test_an_allocator_that_cannot_empty_does_not_hide_what_was_done(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(device: Device) -> ReleaseResult:
        raise RuntimeError("the driver is stuck")

    monkeypatch.setattr(Device, "empty_cache", broken)
    reply = rig.do(update(empty_cache=True), UpdateReply)
    assert (reply.success, reply.outcome) == (True, UpdateOutcome.UPDATED)
    assert reply.release is not None
    assert reply.release.reason is SkipReason.FAILED
    flushed = rig.do(Flush("f"), FlushReply)
    assert flushed.success
    assert not flushed.release
    assert "the driver is stuck" in caplog.text
    rig.do(Pause("p"), PauseReply)
    continued = rig.do(Continue("c"), PauseReply)
    assert (continued.success, continued.changed) == (True, True)
    assert "could not be emptied" in continued.message


def test_abort_all_ends_requests_first(rig: Rig) -> None:
    request = rig.add([1, 2, 3], 50)
    rig.step(3)
    reply = rig.do(update(abort_all_requests=True), UpdateReply, steps=1)
    assert reply.outcome is UpdateOutcome.UPDATED
    assert rig.finishes[request].kind is FinishKind.ABORT


def test_versions_without_a_name_are_counted(rig: Rig) -> None:
    assert rig.do(update("a"), UpdateReply).weight_version == "default+1"
    assert rig.do(update("b"), UpdateReply).weight_version == "default+2"
    assert rig.do(update("c", weight_version="x+9"), UpdateReply).weight_version == "x+9"
    assert rig.do(update("d"), UpdateReply).weight_version == "x+10"


def test_not_a_number_is_a_value_like_any_other(rig: Rig) -> None:
    given = torch.full((8, 4), float("nan"))
    reply = rig.do(UpdateWeightsFromTensor("u", tensors={"embed.weight": given}), UpdateReply)
    assert reply.success
    assert rig.runner.weights["embed.weight"].isnan().all()


def test_a_tied_weight_may_come_under_both_its_names_with_nan_in_it(rig: Rig) -> None:
    given = torch.arange(32.0).view(8, 4)
    given[2, 1] = float("nan")
    tensors = {"embed.weight": given, "tied.weight": given.clone()}
    reply = rig.do(UpdateWeightsFromTensor("u", tensors=tensors), UpdateReply)
    assert reply.success, reply.message
    assert torch.equal(rig.runner.weights["embed.weight"].isnan(), given.isnan())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"nobody.weight": torch.zeros(2)}, "nobody.weight is unknown"),
        ({"embed.weight": torch.zeros(4, 8)}, "has shape [4, 8], not [8, 4]"),
        ({"embed.weight": torch.zeros(8, 4, dtype=torch.int32)}, "torch.int32, which does not convert"),
        ({}, "no tensor was given"),
        (
            {"embed.weight": torch.zeros(8, 4), "tied.weight": torch.ones(8, 4)},
            "embed.weight was given two different values",
        ),
    ],
)
def test_what_does_not_fit_is_refused_whole(rig: Rig, tensors: dict[str, torch.Tensor], words: str) -> None:
    before = rig.snapshot()
    good = {"layers.0.bias": torch.zeros(6)} if tensors else {}
    reply = rig.do(UpdateWeightsFromTensor("u", tensors={**good, **tensors}), UpdateReply)
    assert (reply.success, reply.refusal) == (False, Refusal.INVALID)
    assert words in reply.message
    assert rig.snapshot() == before
    assert rig.scheduler.state.gate.admitting


def test_a_part_of_the_weights_can_be_updated_in_another_float_type(rig: Rig) -> None:
    bias = torch.arange(6, dtype=torch.float64)
    reply = rig.do(UpdateWeightsFromTensor("u", tensors={"layers.0.bias": bias}), UpdateReply)
    assert reply.tensors == 1
    assert rig.runner.weights["layers.0.bias"].tolist() == [0, 1, 2, 3, 4, 5]


def test_tied_names_write_the_one_tensor(rig: Rig) -> None:
    value = torch.full((8, 4), 3.0)
    reply = rig.do(UpdateWeightsFromTensor("u", tensors={"tied.weight": value}), UpdateReply)
    assert reply.success
    assert torch.equal(rig.runner.weights["embed.weight"], value)


class Breaking(torch.nn.Parameter):
    """A parameter on a device that fails while it is written."""

    broken = False

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.Tensor.copy_ and cls.broken:
            raise RuntimeError("the device is gone")
        return super().__torch_function__(function, types, args, kwargs or {})


class Once(torch.nn.Parameter):
    """A parameter that cannot be written once."""

    failures = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.Tensor.copy_ and cls.failures:
            cls.failures -= 1
            raise RuntimeError("a copy failed")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize(("limit", "outcome"), [(184, UpdateOutcome.UNCHANGED), (183, UpdateOutcome.PARTIAL)])
def test_failing_half_way_is_taken_back_if_the_old_values_could_be_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, limit: int, outcome: UpdateOutcome
) -> None:
    rig.weights.store.rollback_bytes = limit
    weights = rig.runner.weights
    last = [*weights][-1]
    weights[last] = Once(weights[last].data, requires_grad=False)
    before = rig.snapshot()
    monkeypatch.setattr(Once, "failures", 1)
    reply = rig.do(update(), UpdateReply)
    assert (reply.success, reply.outcome, reply.refusal) == (False, outcome, Refusal.FAILED)
    taken_back = outcome is UpdateOutcome.UNCHANGED
    assert (rig.snapshot() == before) is taken_back
    assert rig.scheduler.state.gate.may_run is taken_back
    assert rig.do(UpdateWeightsFromTensor("again", tensors=make_weights(1)), UpdateReply).success


def test_failing_half_way_is_said_and_holds_generation_until_repaired(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = rig.runner.weights
    weights["layers.0.bias"] = Breaking(weights["layers.0.bias"].data, requires_grad=False)
    monkeypatch.setattr(Breaking, "broken", True)
    reply = rig.do(update(), UpdateReply)
    assert (reply.success, reply.outcome) == (False, UpdateOutcome.PARTIAL)
    assert reply.refusal is Refusal.FAILED
    request = rig.add([1, 2, 3], 5)
    rig.step(5)
    assert request not in rig.outputs, "generated with weights of unknown value"
    assert "have to be written first" in rig.scheduler.state.gate.holds["weights"]
    monkeypatch.setattr(Breaking, "broken", False)
    assert rig.do(update("repair"), UpdateReply).success
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 5, salt_of(NEW))


def test_nothing_drains_where_weights_are_missing_and_a_transaction_that_waits_for_it_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = rig.add([1, 2, 3], 30)
    rig.step(2)
    rig.do(Pause("p", PauseMode.IN_PLACE, continue_after=100.0), PauseReply)
    weights = rig.runner.weights
    weights["layers.0.bias"] = Breaking(weights["layers.0.bias"].data, requires_grad=False)
    monkeypatch.setattr(Breaking, "broken", True)
    assert rig.do(update(), UpdateReply).outcome is UpdateOutcome.PARTIAL
    monkeypatch.setattr(Breaking, "broken", False)
    drained = rig.do(Drain("d"), DrainReply)
    assert (drained.refusal, drained.remaining) == (Refusal.CONFLICT, 1)
    assert "have to be written first" in drained.message
    done = rig.do(Transaction("t", Settle.DRAIN, update("half", weight_version="t")), TransactionReply)
    assert (done.success, done.failed) == (False, "drain")
    repaired = rig.do(update("repair", flush_cache=False), UpdateReply)
    assert repaired.success, "it could wait for its turn for ever"
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert len(rig.outputs[request]) == 30


def test_who_asked_twice_for_what_was_committed_meanwhile_is_not_told_that_it_can_be_written(
    new_rig: MakeRig,
) -> None:
    arrived: list[bool] = []

    class Late:
        """A peer's weights, which come when the test says so."""

        def take(self) -> Staged | None:
            new = {(Selector.TARGET, name): one for name, one in NEW.items()}
            return rig.weights.store.stage_parts(new) if arrived else None

        def cancel(self) -> None:
            pass

    rig = new_rig(fetch=lambda operation: Late())
    for name in ("a", "b"):
        rig.post(PrepareWeights(name, "u", peer="http://peer"))
        rig.post(CommitWeights(f"commit {name}", update_id="u"))
    rig.step(2)
    arrived.append(True)
    rig.step(10)
    assert rig.replies["a"].success
    assert rig.replies["commit a"].success
    assert rig.replies["b"].refusal is Refusal.CONFLICT
    assert "committed" in rig.replies["b"].message
    assert rig.salt == salt_of(NEW)


def test_selectors_choose_between_target_and_draft(new_rig: MakeRig) -> None:
    rig = new_rig(draft=True)
    assert rig.draft is not None
    target, draft = rig.salt, salt_of(rig.draft.weights)
    rig.do(update("d", selector=Selector.DRAFT), UpdateReply)
    assert (rig.salt, salt_of(rig.draft.weights)) == (target, salt_of(NEW))
    reply = rig.do(update("all"), UpdateReply)
    assert reply.tensors == 6
    assert rig.salt == salt_of(NEW) != draft


def test_a_draft_that_is_not_there_cannot_be_updated(rig: Rig) -> None:
    reply = rig.do(update(selector=Selector.DRAFT), UpdateReply)
    assert reply.refusal is Refusal.INVALID
    assert "no draft model" in reply.message


_LAID_OUT: dict[str, Any] = {"names": ("a",), "shapes": ((1,),)}


@pytest.mark.parametrize(
    "wrong",
    [
        update(selector=Selector.DRAFT, abort_all_requests=True),
        UpdateWeightsFromDistributed("u", dtypes=("float32",), abort_all_requests=True, **_LAID_OUT),
        UpdateWeightsFromDistributed("u", dtypes=("float33",), abort_all_requests=True, **_LAID_OUT),
    ],
    ids=["no such model", "no such group", "no such type"],
)
def test_what_is_refused_at_once_ends_nobodys_request(rig: Rig, wrong: UpdateWeights) -> None:
    request = rig.add([1, 2, 3], 50)
    rig.step(3)
    reply = rig.do(wrong, UpdateReply, steps=1)
    assert not reply.success
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 50, rig.salt)
