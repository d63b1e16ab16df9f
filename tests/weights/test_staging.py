"""Updates that are staged beside the engine: requests go on until all that is left is to write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from devicekit.device import get_device
from devicekit.engine import Engine, EngineConfig
from devicekit.registry import unregister_backend
from devicekit.runners import default_dtype
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.loading import load_model
from devicekit.scheduling.messages import (
    Blocker,
    Refusal,
    Reply,
    Rollback,
    Selector,
    Staging,
    UpdateOutcome,
    UpdateReply,
    Withdraw,
)
from devicekit.scheduling.request import SamplingParams
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply
from devicekit.testing import SimConfig, Simulator
from devicekit.testing.sim_backend import register
from devicekit.testing.waiting import wait_until
from devicekit.weights import (
    CommitWeights,
    DiscardWeights,
    MemoryReply,
    PreparedReply,
    PrepareWeights,
    ReleaseMemory,
    ResumeMemory,
)
from devicekit.weights.operations import UpdateWeightsFromTensor
from devicekit.weights.store import Loaded
from examples.checkpoints import write_example_checkpoint
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.rig import Rig, make_rig
from tests.simulated import requested

NEW = make_weights(5)


class Held(torch.Tensor):
    """A tensor that cannot be copied before the test says so."""

    gate = threading.Event()
    asked = threading.Event()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.Tensor.to:
            cls.asked.set()
            assert cls.gate.wait(30)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.fixture(autouse=True)
def gate() -> Iterator[threading.Event]:
    Held.gate.clear()
    Held.asked.clear()
    yield Held.gate
    Held.gate.set()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A rig that stages beside the engine, however few the weights are."""
    rig = make_rig(get_device("cpu"))
    rig.weights.store.stage_beside = 0
    yield rig
    rig.check()


def held(identity: str = "u", **fields: object) -> UpdateWeightsFromTensor:
    tensors = {name: one.as_subclass(Held) for name, one in NEW.items()}
    return UpdateWeightsFromTensor(identity, tensors=tensors, **fields)  # type: ignore[arg-type]


def answered(rig: Rig, identity: str) -> UpdateReply:
    def looked() -> bool:
        rig.step()
        return identity in rig.replies

    wait_until(looked, 30)
    reply = rig.replies[identity]
    assert isinstance(reply, UpdateReply)
    return reply


def begun(rig: Rig, operation: UpdateWeightsFromTensor | Transaction) -> None:
    """Post an update and wait until it is being staged."""
    rig.post(operation)
    rig.step()
    assert Held.asked.wait(30)


def let_go(gate: threading.Event) -> None:
    """Let staging go on, and wait for its end."""
    gate.set()
    wait_until(lambda: all(one.name != "devicekit-staging" for one in threading.enumerate()), 30)


def test_requests_run_and_start_until_all_that_is_left_is_to_write(rig: Rig, gate: threading.Event) -> None:
    old = rig.salt
    first = rig.add([1, 2, 3], 90)
    rig.step(2)
    begun(rig, held(weight_version="v2"))
    done = rig.add([7, 8], 5)
    before = len(rig.progress(first)[1])
    rig.step(10)
    assert len(rig.progress(first)[1]) == before + 10, "staging kept it from running"
    assert rig.outputs[done] == expected([7, 8], 5, old), "staging kept it from starting"
    assert rig.salt == old
    let_go(gate)
    rig.step()
    assert not rig.scheduler.state.gate.admitting
    late = rig.add([4, 5, 6], 5)
    reply = answered(rig, "u")
    assert (reply.outcome, reply.staging, reply.rollback) == (
        UpdateOutcome.UPDATED,
        Staging.BESIDE,
        Rollback.KEPT,
    )
    rig.run()
    assert rig.outputs[first] == expected([1, 2, 3], 90, old)
    assert rig.outputs[late] == expected([4, 5, 6], 5, salt_of(NEW))


def test_what_does_not_fit_is_refused_without_anything_having_waited(rig: Rig, gate: threading.Event) -> None:
    request = rig.add([1, 2, 3], 60)
    rig.step(2)
    before = rig.snapshot()["weights"]
    wrong = {"head.weight": torch.zeros(4, 4).as_subclass(Held), "nobody.weight": torch.zeros(1)}
    rig.post(UpdateWeightsFromTensor("u", tensors=wrong))

    def looked() -> bool:
        rig.step()
        assert rig.scheduler.state.gate.admitting
        assert rig.scheduler.state.gate.may_run
        return "u" in rig.replies

    wait_until(looked, 30)
    assert rig.replies["u"].refusal is Refusal.INVALID
    assert "nobody.weight is unknown" in rig.replies["u"].message
    assert rig.snapshot()["weights"] == before
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 60, rig.salt)


def test_a_transaction_settles_only_once_the_weights_are_at_hand(rig: Rig, gate: threading.Event) -> None:
    request = rig.add([1, 2, 3], 60)
    rig.step(2)
    begun(rig, Transaction("t", Settle.RETRACT, held()))
    rig.step(10)
    assert rig.scheduler.state.gate.epoch == 0, "it was paused to stage"
    known = rig.progress(request)[1]
    assert len(known) >= 11
    let_go(gate)
    rig.step()
    reply = rig.replies["t"]
    assert isinstance(reply, TransactionReply)
    assert [one.name for one in reply.steps] == ["retract", "update", "flush", "continue"]
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 60, salt_of(NEW), known=known)


def test_a_drain_that_fails_lets_go_of_what_was_staged(rig: Rig, gate: threading.Event) -> None:
    old = rig.salt
    request = rig.add([1, 2, 3], 60)
    rig.step(2)
    begun(rig, Transaction("t", Settle.DRAIN, held(), timeout=3.0))
    let_go(gate)
    rig.step(2)
    assert not rig.scheduler.state.gate.admitting
    rig.clock.sleep(4)
    rig.step()
    reply = rig.replies["t"]
    assert isinstance(reply, TransactionReply)
    assert (reply.failed, reply.paused, reply.outcome) == ("drain", False, UpdateOutcome.UNCHANGED)
    assert rig.scheduler.state.gate.admitting
    assert rig.weights.store.staging == ""
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 60, old)


def test_a_second_update_waits_for_its_turn(rig: Rig, gate: threading.Event) -> None:
    begun(rig, held("first", weight_version="one"))
    rig.post(UpdateWeightsFromTensor("second", tensors=make_weights(6), weight_version="two"))
    rig.step(5)
    assert not rig.replies
    gate.set()
    assert answered(rig, "first").success
    assert answered(rig, "second").success
    assert (rig.scheduler.state.weight_version, rig.salt) == ("two", salt_of(make_weights(6)))


def test_one_that_is_withdrawn_meanwhile_changes_nothing(rig: Rig, gate: threading.Event) -> None:
    before = rig.salt
    request = rig.add([1, 2, 3], 90)
    begun(rig, held())
    assert rig.do(Withdraw("w", "u"), Reply).success
    given_up = answered(rig, "u")
    assert given_up.refusal is Refusal.WITHDRAWN
    assert "running=1" in given_up.message
    assert rig.weights.store.staging == "", "what never comes would keep all others waiting"
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 90, before)
    other = UpdateWeightsFromTensor("other", tensors=make_weights(6))
    assert rig.do(other, UpdateReply, 10**6).success
    let_go(gate)
    rig.step()
    assert rig.salt == salt_of(make_weights(6)), "what was withdrawn was written when it came"


def test_what_cannot_be_let_go_changes_no_answer(rig: Rig) -> None:
    """Where that fails on one of several ranks, the others would have another one."""

    class Stuck:
        names = frozenset[tuple[Selector, str]]()

        def write(self) -> Loaded:
            raise AssertionError("it was withdrawn")

        def close(self) -> None:
            raise ValueError("boom")

    request = rig.add([1, 2, 3], 60)
    rig.step(2)
    operation = UpdateWeightsFromTensor("u")
    answer = rig.weights.updater.begin(operation, Stuck)
    wait_until(lambda: answer() is None and not rig.scheduler.state.gate.admitting, 30)
    rig.scheduler.state.withdrawals.add("u")
    reply = answer()
    assert isinstance(reply, UpdateReply)
    assert reply.refusal is Refusal.WITHDRAWN
    rig.scheduler.state.gate.open("u")
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 60, rig.salt)


def test_the_weights_are_not_released_under_an_update(rig: Rig, gate: threading.Event) -> None:
    begun(rig, held())
    refused = rig.do(ReleaseMemory("r"), MemoryReply)
    assert (refused.refusal, refused.blockers) == (Refusal.BUSY, (Blocker("weight update", 1),))
    assert rig.do(ReleaseMemory("k", ("kv_cache",)), MemoryReply).success, "it reads no keys"
    assert rig.do(ResumeMemory("l", ("kv_cache",)), MemoryReply).success
    gate.set()
    assert answered(rig, "u").success
    assert rig.do(ReleaseMemory("s", backup_weights=True), MemoryReply).success
    assert rig.do(ResumeMemory("t"), MemoryReply).success
    assert rig.salt == salt_of(NEW)


class Once(torch.nn.Parameter):
    """A parameter that cannot be written when the test says so."""

    fails = False

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.Tensor.copy_ and cls.fails:
            cls.fails = False
            raise RuntimeError("a copy failed")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("limit", [184, 183])
def test_old_values_were_kept_before_or_the_answer_says_that_they_were_not(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, gate: threading.Event, limit: int
) -> None:
    gate.set()
    rig.weights.store.rollback_bytes = limit
    before, last = rig.snapshot(), [*rig.runner.weights][-1]
    rig.runner.weights[last] = Once(rig.runner.weights[last].data, requires_grad=False)
    monkeypatch.setattr(Once, "fails", True)
    rig.post(held())
    reply = answered(rig, "u")
    kept = limit == 184
    assert reply.rollback is (Rollback.KEPT if kept else Rollback.NONE)
    assert reply.outcome is (UpdateOutcome.UNCHANGED if kept else UpdateOutcome.PARTIAL)
    assert (rig.snapshot() == before) is kept
    assert rig.do(UpdateWeightsFromTensor("again", tensors=make_weights(1)), UpdateReply, 10**6).success


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    with requested(request) as machine:
        register()
        yield machine
        unregister_backend("sim")


@pytest.mark.parametrize("machine", [SimConfig(capacity=16 << 20)], indirect=True)
def test_what_does_not_fit_in_memory_is_refused_before_any_of_it_is_taken(machine: Simulator) -> None:
    device = get_device("sim")
    rig = make_rig(device)
    large = torch.nn.Parameter(torch.zeros(3 << 20, device=device.torch_device), requires_grad=False)
    rig.runner.weights["large"] = large
    before = device.memory_stats().allocated
    given = {"large": torch.ones(3 << 20)}
    rig.post(UpdateWeightsFromTensor("u", tensors=given))
    wait_until(lambda: bool(rig.step()) and "u" in rig.replies, 30)
    assert rig.replies["u"].refusal is Refusal.FAILED
    assert f"needs {12 << 20} bytes of memory of sim:0" in rig.replies["u"].message
    assert (large.max().item(), device.memory_stats().allocated) == (0, before)


# -- A model from disk ----------------------------------------------------------------------------------------


@pytest.fixture
def engine(checkpoints: tuple[Path, Path]) -> Engine:
    engine = Engine.open(checkpoints[0], "cpu", config=EngineConfig(kv_tokens=2048))
    engine.weights.store.stage_beside = 0
    return engine


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> threading.Event:
    """Set once weights are to be read, which takes until ``gate`` is set."""
    asked, read = threading.Event(), ModelDirectory.read_weights

    def slowly(directory: ModelDirectory, *args: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        asked.set()
        assert gate.wait(30)
        return read(directory, *args)

    monkeypatch.setattr(ModelDirectory, "read_weights", slowly)
    return asked


def said(engine: Engine) -> tuple[int, ...]:
    return tuple(engine.generate(["Once upon"], max_new_tokens=8, temperature=0)[0].tokens)


def test_a_checkpoint_is_read_while_requests_go_on(
    engine: Engine, checkpoints: tuple[Path, Path], reading: threading.Event, gate: threading.Event
) -> None:
    running = engine.submit("Once", SamplingParams(max_new_tokens=60, ignore_eos=True, temperature=0))
    engine.step()
    engine.post(PrepareWeights("p", "u", str(checkpoints[1])))
    engine.step()
    assert reading.wait(30)
    before = len(engine.scheduler.state.requests[running.id].tokens), engine.scheduler.state.gate.epoch
    steps = sum(engine.step().ran for _ in range(10))
    assert (steps, engine.scheduler.state.gate.epoch) == (10, before[1])
    assert engine.perform(DiscardWeights("d", "u"), PreparedReply).success
    engine.step()
    given_up = engine.take_reply("p")
    assert given_up is not None
    assert "given up" in given_up.message
    gate.set()
    assert engine.perform(PrepareWeights("q", "u", str(checkpoints[1])), PreparedReply).success
    while not running.done:
        engine.step()
    assert len(running.tokens) == 60
    reply = engine.update_weights_from_disk(checkpoints[1])
    assert (reply.staging, reply.rollback) == (Staging.BESIDE, Rollback.KEPT)
    other = Engine.open(checkpoints[1], "cpu", config=EngineConfig(kv_tokens=2048))
    assert said(engine) == said(other)


def test_old_values_that_are_not_the_last_ones_are_kept_anew(
    engine: Engine, checkpoints: tuple[Path, Path], gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.perform(PrepareWeights("p", "u", str(checkpoints[1])), PreparedReply).success
    name, weight = next(iter(engine.runner.named_weights()))
    between = torch.full_like(weight, 0.25)
    gate.set()
    assert engine.update_weights(UpdateWeightsFromTensor("t", tensors={name: between})).success
    written = torch.Tensor.copy_

    def broken(tensor: torch.Tensor, *args: object) -> torch.Tensor:
        monkeypatch.setattr(torch.Tensor, "copy_", written)
        raise RuntimeError("a copy failed")

    write = type(engine.weights.store).tensors

    def breaking(*args: object) -> object:
        monkeypatch.setattr(torch.Tensor, "copy_", broken)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(engine.weights.store), "tensors", breaking)
    reply = engine.perform(CommitWeights("c", update_id="u"), UpdateReply)
    assert (reply.success, reply.outcome, reply.rollback) == (
        False,
        UpdateOutcome.UNCHANGED,
        Rollback.KEPT_LATE,
    )
    assert torch.equal(dict(engine.runner.named_weights())[name], between)


def test_a_model_is_not_built_while_a_pass_needs_the_default_type(tmp_path: Path) -> None:
    directory = ModelDirectory.open(write_example_checkpoint(tmp_path / "model", seed=1))
    loading = threading.Thread(target=load_model, args=(directory,), kwargs={"dtype": torch.bfloat16})
    with default_dtype.in_use:
        loading.start()
        loading.join(0.5)
        assert loading.is_alive()
        assert torch.get_default_dtype() is torch.float32
    loading.join(30)
    assert not loading.is_alive()
    assert torch.get_default_dtype() is torch.float32
