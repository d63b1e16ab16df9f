"""What goes wrong on one rank, and what all of them make of it together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.records import ErrorKind
from devicekit.release import ReleasePoint, when_reclaimable
from devicekit.scheduling.errors import InvalidOperation, InvalidRequest, RankLost
from devicekit.scheduling.messages import (
    Continue,
    Drain,
    Flush,
    FlushReply,
    Operation,
    Pause,
    PauseMode,
    Refusal,
    UpdateOutcome,
    UpdateReply,
)
from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from devicekit.scheduling.state import Participant
from devicekit.weights.operations import ChecksumWeights, UpdateWeightsFromTensor
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.processes import World, Worlds
from tests.scheduling.ranked_world import Rank, Record, agree, make_rank
from tests.scheduling.rig import LateCopier

OLD, NEW = make_weights(0), make_weights(5)
A, B = list(range(1, 20)), list(range(100, 130))


@pytest.fixture
def world(worlds: Worlds) -> World:
    return worlds(2)


@pytest.fixture
def three(worlds: Worlds) -> World:
    return worlds(3)


# -- Weight updates -------------------------------------------------------------------------------------------


def boom(*arguments: object, **more: object) -> object:
    raise ValueError("boom")


def update_that_does_not_load() -> Record:
    rank = make_rank()
    if rank.number == 1:
        rank.weights.store.stage = boom  # type: ignore[assignment]

    def script(rank: Rank) -> None:
        rank.request("before", A, 9)
        rank.scheduler.step()
        rank.do(UpdateWeightsFromTensor("u", tensors=NEW))
        rank.request("after", B, 5)
        rank.run("before", "after")
        rank.do(ChecksumWeights("sum"))

    return rank.play(script)


def test_weights_that_one_rank_cannot_load_are_written_by_none(three: World) -> None:
    first = agree(three.play(update_that_does_not_load))
    reply = first.replies["u"]
    assert isinstance(reply, UpdateReply) or reply.refusal is Refusal.FAILED
    assert reply.message == "rank 1: ValueError: boom"
    assert first.tokens["before"] == expected(A, 9, salt_of(OLD))
    assert first.tokens["after"] == expected(B, 5, salt_of(OLD))
    assert first.state["weights"] == ("default", 0, salt_of(OLD))


class Unwritable(torch.Tensor):
    """A weight that fails when it is written."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.Tensor.copy_:
            raise RuntimeError("the device is gone")
        return super().__torch_function__(func, types, args, kwargs or {})


def update_that_is_not_written() -> Record:
    rank = make_rank()
    if rank.number == 1:
        whole = rank.runner.weights
        weight = whole["layers.0.bias"]
        whole["layers.0.bias"] = weight.data.as_subclass(Unwritable)  # type: ignore[assignment]

    def script(rank: Rank) -> None:
        rank.do(UpdateWeightsFromTensor("u", tensors=NEW))
        rank.request("held", A, 5)
        rank.scheduler.step()
        assert not rank.scheduler.state.gate.may_run
        rank.do(Flush("f"))

    return rank.play(script)


def test_weights_that_one_rank_wrote_half_way_are_trusted_by_none(three: World) -> None:
    first = agree(three.play(update_that_is_not_written))
    reply = first.replies["u"]
    assert isinstance(reply, UpdateReply)
    assert reply.outcome is UpdateOutcome.PARTIAL
    assert "rank 1: PartlyWritten: RuntimeError: the device is gone" in reply.message
    assert first.state["untrusted"] == sorted(NEW)
    assert first.state["holds"] == ["weights"]


def drain_that_one_refuses() -> Record:
    rank = make_rank()
    if rank.number == 1:
        rank.scheduler.control.register(Drain, boom)  # type: ignore[arg-type]

    def script(rank: Rank) -> None:
        rank.request("r", A, 9)
        rank.scheduler.step()
        rank.do(Drain("d"))
        rank.run("r")

    return rank.play(script)


def test_an_operation_that_one_rank_refuses_is_refused_by_all(world: World) -> None:
    first = agree(world.play(drain_that_one_refuses))
    assert first.replies["d"].message == "rank 1: Drain failed: ValueError: boom"
    assert first.finishes["r"].kind is FinishKind.LENGTH


# -- Forward passes -------------------------------------------------------------------------------------------


def failing_pass(at: int, faults: int, kind: str) -> Record:
    rank = make_rank()
    if rank.number == 1:
        errors: dict[str, Exception] = {
            "oom": torch.OutOfMemoryError("no more"),
            "error": ValueError("boom"),
            "lost": RuntimeError("lost"),
        }
        rank.runner.faults.extend([None] * at + [errors[kind]] * faults)
        rank.runner.faults_after_writing = bool(at % 2)
        if kind == "lost":
            rank.scheduler.state.runner._classify = lambda error: ErrorKind.DEVICE_LOST  # type: ignore[attr-defined]

    def script(rank: Rank) -> None:
        rank.request("r1", A, 8)
        rank.request("r2", B, 8, stream=True)
        rank.scheduler.step()
        rank.request("r3", [5, 6, 7], 8)
        rank.run("r1", "r2", "r3")
        rank.do(Flush("f"))

    return rank.play(script)


@pytest.mark.parametrize("faults", [1, 2, 3])
@pytest.mark.parametrize("at", [0, 1, 2, 6])
def test_out_of_memory_on_one_rank_is_retried_and_shed_by_all(world: World, at: int, faults: int) -> None:
    first = agree(world.play(failing_pass, at, faults, "oom"))
    outcomes = {one.kind for one in first.finishes.values()}
    assert outcomes == {FinishKind.LENGTH}
    for identity, prompt in (("r1", A), ("r2", B), ("r3", [5, 6, 7])):
        assert first.tokens[identity] == expected(prompt, 8, salt_of(OLD))
    assert first.replies["f"].success


def no_room() -> Record:
    rank = make_rank()
    if rank.number == 1:
        rank.runner.faults.append(torch.OutOfMemoryError("no more"))
        rank.faults.arm("empty", "fail")

    def script(rank: Rank) -> None:
        rank.request("r1", A, 8)
        rank.run("r1")
        rank.request("r2", A, 8)
        rank.run("r2")

    return rank.play(script)


def test_room_that_one_rank_cannot_make_is_made_by_none(world: World) -> None:
    first = agree(world.play(no_room))
    assert "rank 1: ValueError: boom" in first.finishes["r1"].message
    assert first.tokens["r2"] == expected(A, 8, salt_of(OLD))


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_pass_that_fails_on_one_rank_ends_its_requests_on_all(three: World, at: int) -> None:
    first = agree(three.play(failing_pass, at, 1, "error"))
    failed = [one for one in first.finishes.values() if one.kind is FinishKind.ERROR]
    assert failed
    assert all("rank 1: ValueError: boom" in one.message for one in failed)
    assert first.state["healthy"]
    assert first.replies["f"].success


def test_a_device_lost_on_one_rank_is_lost_to_all(world: World) -> None:
    first = agree(world.play(failing_pass, 2, 1, "lost"))
    assert {one.kind for one in first.finishes.values()} == {FinishKind.ERROR}
    assert first.state["healthy"] is False


def drawn_differently() -> Record:
    rank = make_rank()
    if rank.number == 1:
        step = rank.runner.step

        def other(batch):  # type: ignore[no-untyped-def]
            output = step(batch)
            output.tokens = (output.tokens + 1) % 900
            return output

        rank.runner.step = other  # type: ignore[method-assign]

    def script(rank: Rank) -> None:
        rank.request("r", A, 12)
        rank.run("r")

    return rank.play(script)


def test_tokens_are_those_that_rank_0_drew(world: World) -> None:
    first = agree(world.play(drawn_differently))
    assert first.tokens["r"] == expected(A, 12, salt_of(OLD))


# -- What finishes at different times -------------------------------------------------------------------------


def slow_copies() -> Record:
    rank = make_rank(host_pages=64, copier=LateCopier())
    assert rank.copier is not None
    copier, tier, step = rank.copier, rank.tier, rank.scheduler.step
    assert tier is not None
    turn = 0

    def stepping():  # type: ignore[no-untyped-def]
        nonlocal turn
        turn += 1
        # Rank 0's copies finish at once; those of rank 1 many steps later, and not all at a time.
        if rank.number == 0 or turn % 9 == 0:
            copier.finish(None if rank.number == 0 else 1)
        return step()

    rank.scheduler.step = stepping  # type: ignore[method-assign]

    def script(rank: Rank) -> None:
        rank.request("r1", A, 4)
        rank.request("r2", B, 4)
        rank.run("r1", "r2")
        refused = rank.do(Flush("early"))
        rank.record.notes["blockers"] = refused.blockers
        rank.do(Pause("p", PauseMode.RETRACT))
        rank.do(Flush("patient", timeout=20.0))
        rank.do(Continue("c"))
        rank.request("r3", A, 4)
        rank.run("r3")

    return rank.play(script)


def test_copies_are_finished_when_they_are_on_every_rank(world: World) -> None:
    first = agree(world.play(slow_copies))
    early, patient = first.replies["early"], first.replies["patient"]
    assert not early.success
    assert [one.name for one in early.blockers] == ["host_copies"]
    assert patient.success
    assert first.tokens["r3"] == expected(A, 4, salt_of(OLD))


def broken_copies() -> Record:
    rank = make_rank(host_pages=64)
    if rank.number == 1:
        assert rank.tier is not None
        rank.tier.pool.store = boom  # type: ignore[assignment]

    def script(rank: Rank) -> None:
        rank.request("r1", A, 4)
        rank.run("r1")
        rank.do(Flush("f"))
        assert rank.tier is not None
        rank.record.notes["stored"] = rank.tier.counters.stored

    return rank.play(script)


def test_a_copy_that_one_rank_cannot_begin_is_begun_by_none(world: World) -> None:
    first = agree(world.play(broken_copies))
    assert first.notes["stored"] == 0
    assert first.replies["f"].success


def flush_that_one_participant_refuses() -> Record:
    rank = make_rank()
    flush = boom if rank.number == 1 else (lambda: None)
    rank.scheduler.register(Participant("grammar", flush))  # type: ignore[arg-type]
    return rank.play(lambda rank: rank.record.notes.update(reply=rank.do(Flush("f"))))


def test_a_flush_that_fails_on_one_rank_names_it(world: World) -> None:
    first = agree(world.play(flush_that_one_participant_refuses))
    reply = first.replies["f"]
    assert isinstance(reply, FlushReply)
    assert reply.message == "The KV cache was flushed, but these caches could not be: grammar (rank 1)."
    assert reply.failed == ("grammar (rank 1)",)
    assert reply.refusal is Refusal.FAILED


def reclaimable(figures: list[int]) -> Record:
    rank = make_rank(policies={ReleasePoint.FLUSH: when_reclaimable(1000)})
    first = rank.group.first
    rank.group.first = lambda own: first(figures[rank.number])  # type: ignore[method-assign]
    record = rank.play(lambda rank: rank.record.notes.update(reply=rank.do(Flush("f"))))
    record.notes["reason"] = [one.reason for one in rank.scheduler.state.releases.ledger]
    return record


@pytest.mark.parametrize("figures", [[10, 5000], [5000, 10]])
def test_rank_0_decides_whether_releasing_is_worth_it(world: World, figures: list[int]) -> None:
    records = world.play(reclaimable, figures)
    agree(records)
    reasons = {str(one.notes["reason"]) for one in records}
    assert len(reasons) == 1
    assert ("TOO_LITTLE" in reasons.pop()) is (figures[0] == 10)


# -- Misuse ---------------------------------------------------------------------------------------------------


def refusals() -> Record:
    rank = make_rank()
    scheduler = rank.scheduler
    attempts: dict[str, Callable[[], object]] = {
        "add": lambda: scheduler.add(Request("x", A, SamplingParams(2))),  # type: ignore[arg-type]
        "again": lambda: scheduler.add(Request("x", A)),  # type: ignore[arg-type]
        "empty": lambda: scheduler.add(Request("y", [])),  # type: ignore[arg-type]
        "submit": lambda: scheduler.control.submit(Flush("x")),
        "post": lambda: scheduler.post(Flush("x")) if rank.number else boom(),
        "foreign": lambda: scheduler.post(_Foreign("x", threading.Lock())),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (InvalidOperation, InvalidRequest, ValueError) as error:
            rank.record.notes[name] = f"{type(error).__name__}: {error}"

    def script(rank: Rank) -> None:
        rank.run("x")
        rank.request("cut", A, 500)
        rank.scheduler.post(Flush("pending", timeout=100.0))
        rank.scheduler.step()

    return rank.play(script)


@dataclass(frozen=True, slots=True)
class _Foreign(Operation):
    lock: object = None


def test_only_rank_0_takes_things_in_and_what_is_left_at_the_end_is_answered(world: World) -> None:
    records = world.play(refusals)
    first, second = records
    agree(records)
    for record in records:
        assert "posted on rank 0" in str(record.notes["submit"])
    assert "This is rank 1" in str(second.notes["add"])
    assert "This is rank 1" in str(second.notes["post"])
    assert "already in flight" in str(first.notes["again"])
    assert "the prompt is empty" in str(first.notes["empty"])
    assert first.finishes["x"].kind is FinishKind.LENGTH
    assert "cannot be sent to the other ranks" in str(first.notes["foreign"])
    assert first.finishes["cut"].message == "The ranks were told to stop."
    assert first.replies["pending"].message == "The ranks were told to stop."


def sizes_that_differ() -> Record:
    import torch.distributed as dist

    record = Record()
    try:
        make_rank(num_pages=40 + dist.get_rank())
    except ConfigurationError as error:
        record.notes["error"] = str(error)
    return record


def test_ranks_of_different_sizes_do_not_begin(world: World) -> None:
    for record in world.play(sizes_that_differ):
        assert "Every rank needs the same sizes" in str(record.notes["error"])
        assert "num_pages=41" in str(record.notes["error"])


def gone_another_way() -> Record:
    rank = make_rank(checked=False)  # or its own audit would find the stolen page first

    def script(rank: Rank) -> None:
        rank.request("r", A, 400)
        rank.scheduler.step()
        rank.scheduler.post(Flush("pending", timeout=100.0))
        for _ in range(20):
            rank.scheduler.step()

    if rank.number == 1:
        step, turn = rank.scheduler.step, 0

        def stepping():  # type: ignore[no-untyped-def]
            nonlocal turn
            turn += 1
            if turn == 7:
                rank.scheduler.state.kv.pages.take(1)
            return step()

        rank.scheduler.step = stepping  # type: ignore[method-assign]
    return rank.play(script)


def test_a_rank_that_went_another_way_is_found_out_before_it_does_harm(three: World) -> None:
    for record in three.play(gone_another_way):
        assert record.lost == ("Rank 1 went another way than rank 0: their states differ.", (1,))
        assert record.finishes["r"].kind is FinishKind.ERROR
        assert "Rank 1" in record.finishes["r"].message
        assert "Rank 1" in record.replies["pending"].message
        assert not record.twice


def lost_error() -> Record:
    import pickle

    error = pickle.loads(pickle.dumps(RankLost("gone", (1,))))
    return Record(lost=(str(error), error.ranks))


def test_the_error_crosses_processes(world: World) -> None:
    assert all(record.lost == ("gone", (1,)) for record in world.play(lost_error))
