"""Every step of every verb that may fail: on one rank, late on one, or with a rank that dies there.

Whatever happens, every rank answers the same and is left in the same state, and the engine goes on from there; or
every rank that is left says which one was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
from safetensors.torch import save_file

from devicekit.scheduling.messages import (
    Continue,
    Drain,
    Flush,
    Operation,
    Pause,
    PauseMode,
    Reply,
    UpdateOutcome,
    UpdateReply,
    UpdateWeightsFromDisk,
)
from devicekit.scheduling.request import FinishKind
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply
from devicekit.weights.operations import (
    ChecksumWeights,
    MemoryReply,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromIPC,
    UpdateWeightsFromTensor,
)
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.processes import World, Worlds
from tests.scheduling.ranked_faults import SLOW
from tests.scheduling.ranked_world import Rank, Record, agree, make_rank

OLD, NEW, LAST = make_weights(0), make_weights(5), make_weights(6)
A, B, C = list(range(1, 20)), list(range(100, 130)), [5, 6, 7]

UPDATE = UpdateWeightsFromTensor("verb", tensors=NEW, empty_cache=True)
RELEASE = ReleaseMemory("verb", backup_weights=True)


class Verb(NamedTuple):
    """What is done, and where it may fail. The last operation is the one in question."""

    operations: tuple[Operation, ...]
    points: tuple[str, ...]


VERBS = {
    "flush": Verb((Flush("verb"),), ("flush", "empty")),
    "continue": Verb((Pause("pause", PauseMode.IN_PLACE), Continue("verb")), ("empty",)),
    "drain": Verb((Drain("verb", 10.0),), ("drain",)),
    "update": Verb((UPDATE,), ("stage", "write", "written", "flush", "empty")),
    "update from disk": Verb(
        (UpdateWeightsFromDisk("verb", empty_cache=True),), ("stage", "write", "written", "flush", "empty")
    ),
    "update over ipc": Verb((UpdateWeightsFromIPC("verb"),), ("stage", "write", "written", "let go")),
    "release": Verb(
        (RELEASE,), ("release kv_cache", "back up", "release weights", "empty", "empty host", "flush")
    ),
    "release weights": Verb((ReleaseMemory("verb", ("weights",)),), ("release weights",)),
    "resume": Verb((ReleaseMemory("r"), ResumeMemory("verb")), ("resume weights", "resume kv_cache")),
    "resume with a copy": Verb((ReleaseMemory("r", (), True), ResumeMemory("verb")), ("resume weights",)),
    "transaction": Verb(
        (Transaction("verb", Settle.RETRACT, UPDATE),), ("stage", "write", "written", "flush", "empty")
    ),
    "transaction that drains": Verb(
        (Transaction("verb", Settle.DRAIN, UpdateWeightsFromDisk("u"), False, True),),
        ("drain", "stage", "written", "empty"),
    ),
}
STEPS = [(verb, point) for verb, one in VERBS.items() for point in one.points]
# A death costs most of a second: once at every step, and once in every verb.
DEATHS = {point: (verb, point) for verb, point in reversed(STEPS)} | {
    verb: (verb, one.points[-1]) for verb, one in VERBS.items()
}
IDLE = ("flush", "release", "release weights", "resume", "resume with a copy")  # refused while requests run


def verb_with_a_fault(name: str, faults: Sequence[tuple[int, str, str, int]], path: str) -> Record:
    """Play a verb with requests around it; each fault is of a rank, at a point, an act, so many times."""
    rank = make_rank()
    for who, point, act, times in faults:
        if who == rank.number:
            rank.faults.arm(point, act, times)
    lent = {key: rank.runner.device.export_ipc(one) for key, one in NEW.items()}

    def script(rank: Rank) -> None:
        rank.request("before", A, 4)
        rank.run("before")
        if name not in IDLE:
            rank.request("flying", B, 12)
            rank.scheduler.step()
        for operation in VERBS[name].operations:
            rank.do(_complete(operation, path, lent))
        if not rank.weights.store.untrusted:
            rank.do(ChecksumWeights("sum"))
        _mend(rank)

    return rank.play(script)


def _complete(operation: Operation, path: str, lent: dict[str, object]) -> Operation:
    """What is known only where it is played."""
    if isinstance(operation, UpdateWeightsFromDisk):
        return replace(operation, path=path)
    if isinstance(operation, UpdateWeightsFromIPC):
        return replace(operation, handles=lent)
    if isinstance(operation, Transaction) and isinstance(operation.update, UpdateWeightsFromDisk):
        return replace(operation, update=replace(operation.update, path=path))
    return operation


def _mend(rank: Rank) -> None:
    """Whatever was left behind, an operator who resumes, updates and continues has an engine that works."""
    if rank.group.lost is not None:
        return
    for operation in (
        ResumeMemory("mend 1"),
        UpdateWeightsFromTensor("mend 2", tensors=LAST, flush_cache=False),
        Continue("mend 3"),
    ):
        rank.do(operation)
    rank.request("after", C, 5)
    rank.run("after", *(["flying"] if "flying" in rank.record.posted else []))
    rank.do(Flush("mend 4"))
    rank.do(ReleaseMemory("mend 5"))


@pytest.fixture(scope="module")
def world(worlds: Worlds) -> World:
    return worlds(2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "new.safetensors"
    save_file(NEW, file)
    return str(file)


def mended(records: list[Record]) -> Record:
    """All ranks have said and left the same at every step, and the engine worked on."""
    first = agree(records)
    for number in range(1, 6):
        reply = first.replies[f"mend {number}"]
        assert reply.success, reply.message
    assert first.tokens["after"] == expected(C, 5, salt_of(LAST))
    assert {one.kind for one in first.finishes.values()} == {FinishKind.LENGTH}
    assert set(first.posted) == first.finishes.keys() | first.replies.keys()
    return first


def kept(reply: Reply) -> bool:
    """Whether the weights are what they were, by what the answer says."""
    return getattr(reply, "outcome", UpdateOutcome.UNCHANGED) is UpdateOutcome.UNCHANGED


@pytest.mark.parametrize("verb", VERBS)
def test_a_rank_that_is_late_at_every_step_changes_nothing(world: World, path: str, verb: str) -> None:
    late = [(1, point, "lag", 1) for point in VERBS[verb].points]
    first = mended(world.play(verb_with_a_fault, verb, late, path))
    assert first.replies["verb"].success, first.replies["verb"].message
    assert first.seconds > SLOW


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(("verb", "point"), STEPS)
def test_what_fails_on_one_rank_is_told_by_rank_and_leaves_all_the_same(
    world: World, path: str, verb: str, point: str, who: int
) -> None:
    times = 2 if point.startswith("resume") else 1  # the second time it is tried with an empty cache
    first = mended(world.play(verb_with_a_fault, verb, [(who, point, "fail", times)], path))
    reply, left = first.replies["verb"], first.left["verb"]
    if verb == "release" and point == "flush":
        assert reply.success
        return
    assert f"rank {who}" in reply.message, reply.message
    assert "ValueError: boom" in reply.message or "grammar" in reply.message
    CHECKS[point](verb, reply, left)


# -- What is to be left behind, by the step that failed -------------------------------------------------------


def nothing_written(verb: str, reply: Reply, left: dict[str, object]) -> None:
    assert not reply.success
    assert kept(reply)
    assert left["weights"] == ("default", 0, salt_of(OLD))
    assert left["source"] is None
    assert left["closed_by"] == []
    paused = isinstance(reply, TransactionReply) and len(reply.steps) > 1
    assert left["pause"] == ((False, 2) if paused else (False, 0))
    if isinstance(reply, TransactionReply):
        assert (reply.failed, reply.paused) == ("update", False)


def not_staged(verb: str, reply: Reply, left: dict[str, object]) -> None:
    nothing_written(verb, reply, left)
    assert left["pause"] == (False, 0), "it was paused for what could not be had"


def not_flushed(verb: str, reply: Reply, left: dict[str, object]) -> None:
    assert not reply.success
    assert "these caches could not be: grammar (rank" in reply.message
    if isinstance(reply, UpdateReply | TransactionReply):
        assert reply.outcome is UpdateOutcome.UPDATED_NOT_FLUSHED
        version, epoch, salt = left["weights"]  # type: ignore[misc]
        assert (version, epoch, salt) == ("default+1", 1, salt_of(NEW))
    assert left["pause"] == ((True, 1) if verb == "transaction" else (False, 0))


def not_emptied(verb: str, reply: Reply, left: dict[str, object]) -> None:
    assert reply.success
    assert reply.release is not None
    assert reply.release.error.startswith("ValueError: boom (rank ")
    assert left["pause"] == {"continue": (False, 2), "transaction": (False, 2)}.get(
        verb, (False, 2) if verb.startswith("transaction") else (False, 0)
    )


def not_drained(verb: str, reply: Reply, left: dict[str, object]) -> None:
    assert not reply.success
    assert left["closed_by"] == []
    assert left["pause"] == (False, 0)


def not_everything_released(verb: str, reply: Reply, left: dict[str, object]) -> None:
    assert isinstance(reply, MemoryReply)
    assert not reply.success
    told = {one.tag for one in reply.regions if one.released}
    assert told <= set(left["released"])  # type: ignore[call-overload]
    assert ("memory" in left["holds"]) is bool(left["released"])  # type: ignore[operator]


def not_resumed(verb: str, reply: Reply, left: dict[str, object]) -> None:
    not_everything_released(verb, reply, left)
    assert left["released"]


Check = Callable[[str, Reply, dict[str, object]], None]
CHECKS: dict[str, Check] = {
    "stage": not_staged,
    "write": nothing_written,
    "written": nothing_written,
    "let go": nothing_written,
    "flush": not_flushed,
    "empty": not_emptied,
    "drain": not_drained,
    "empty host": not_everything_released,
    "back up": not_everything_released,
    "release weights": not_everything_released,
    "release kv_cache": not_everything_released,
    "resume weights": not_resumed,
    "resume kv_cache": not_resumed,
}


def test_memory_that_one_rank_kept_is_released_the_next_time(world: World) -> None:
    records = world.play(released_at_the_second_attempt)
    first = mended(records)
    half, again = first.left["half"], first.left["again"]
    assert half["released"] == again["released"] == ["weights"]
    assert not first.replies["half"].success
    assert first.replies["again"].success
    assert [record.notes["held"] for record in records] == [[False, False], [True, False]]
    refused = first.replies["refused"]
    assert refused.message == "The memory of the weights is released: resume it first."
    assert first.left["refused"]["requests"] == ["waiting"], "a refusal aborts nothing"


def released_at_the_second_attempt() -> Record:
    rank = make_rank()
    if rank.number == 1:
        rank.faults.arm("release weights", "fail")
    look, held = rank.scheduler.look, []

    def looking() -> dict[str, object]:
        if not rank.record.left.keys() - {"half", "refused"}:
            held.append(all(one.numel() for one in rank.runner.weights.values()))
        return look()

    rank.scheduler.look = looking

    def script(rank: Rank) -> None:
        rank.do(ReleaseMemory("half", ("weights",)))
        rank.request("waiting", C, 3)
        rank.do(UpdateWeightsFromTensor("refused", tensors=NEW, abort_all_requests=True))
        rank.do(ReleaseMemory("again", ("weights",)))
        rank.do(ResumeMemory("back"))
        _mend(rank)

    record = rank.play(script)
    record.notes["held"] = [held[0], held[2]]
    return record


# -- Death ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mortal() -> Iterator[World]:
    world = World(2, forked=True)
    yield world
    world.close()


@pytest.mark.parametrize(("verb", "point"), sorted(set(DEATHS.values())))
def test_a_rank_that_dies_at_any_step_is_named_in_the_answer(
    mortal: World, path: str, verb: str, point: str
) -> None:
    who = (len(verb) + len(point)) % 2  # either, and at the same steps every time
    try:
        (record,) = mortal.play(verb_dying, verb, [(who, point, "die", 1)], path, expect=str(who))
    finally:
        mortal.replace(str(who))
    assert record.lost is not None
    message, lost = record.lost
    assert lost == (who,), message
    assert "its process has ended or stands still" in message
    assert not record.twice
    assert record.balanced
    assert record.finishes.keys() >= record.tokens.keys()
    assert set(record.posted) <= record.finishes.keys() | record.replies.keys(), "no answer"
    if who == 1:
        assert f"rank {who}" in record.replies["verb"].message


def verb_dying(name: str, faults: Sequence[tuple[int, str, str, int]], path: str) -> Record:
    record = verb_with_a_fault(name, faults, path)
    record.left.clear()
    return record
