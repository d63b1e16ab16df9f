"""Each rank's own stream of weights: what fails on one of them fails on all, and they go on together."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from devicekit.scheduling.messages import UpdateOutcome, UpdateReply
from devicekit.scheduling.request import FinishKind
from devicekit.weights.operations import UpdateWeightsFromStream, UpdateWeightsFromTensor
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.processes import World, Worlds
from tests.scheduling.ranked_world import Rank, Record, agree, make_rank
from tests.weights.test_streamed import ALL, NEW, SENDER, Streamer
from tools.warm import Warm

LAST, A = make_weights(6), list(range(1, 20))
WHOLE = f"buffer {ALL} none"


@pytest.fixture
def world(worlds: Worlds) -> World:
    return worlds(2)


@pytest.fixture(scope="module")
def processes(warm: Warm) -> Iterator[list[subprocess.Popen[str]]]:
    command = [*warm.python, "-c", SENDER]
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        for one in both:
            stack.callback(one.kill)
        yield both


@pytest.fixture
def senders(processes: list[subprocess.Popen[str]], tmp_path: Path) -> list[Streamer]:
    return [Streamer(process, f"ipc://{tmp_path}/{rank}") for rank, process in enumerate(processes)]


def streamed(addresses: dict[str, str], faults: dict[str, str]) -> Record:
    rank = make_rank()
    if rank.number == 1:
        for point, act in faults.items():
            rank.faults.arm(point, act)

    def script(rank: Rank) -> None:
        rank.request("flying", A, 40)
        rank.scheduler.step()
        operation = UpdateWeightsFromStream("s", sockets=addresses, timeout=20.0, abort_all_requests=True)
        rank.do(operation, steps=10_000)
        rank.do(UpdateWeightsFromTensor("mend", tensors=LAST))
        rank.request("after", A, 5)
        rank.run("after")

    return rank.play(script)


def play(
    world: World, senders: list[Streamer], scripts: tuple[str, str], **faults: str
) -> tuple[Record, UpdateReply]:
    for sender, script in zip(senders, scripts, strict=True):
        sender.send(script)
    addresses = {f"GPU-rank-{rank}": one.address for rank, one in enumerate(senders)}
    first = agree(world.play(streamed, addresses, faults))
    assert first.replies["mend"].success
    assert first.tokens["after"] == expected(A, 5, salt_of(LAST))
    reply = first.replies["s"]
    assert isinstance(reply, UpdateReply)
    return first, reply


def test_every_rank_takes_its_own_stream(world: World, senders: list[Streamer]) -> None:
    first, reply = play(world, senders, (WHOLE, WHOLE))
    assert reply.success, reply.message
    assert first.left["s"]["weights"] == ("default+1", 3, salt_of(NEW))
    assert [one.told(5) for one in senders] == [["ok"] * 5] * 2


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("buffer embed.weight nonsense head.weight none", "rank 1: InvalidOperation: A bucket says of each"),
        ("buffer embed.weight attack head.weight none", "(rank 1)"),
        ("buffer embed.weight buffer head.weight none", "rank 1: InvalidOperation: A buffer was sent where"),
        ("buffer embed.weight beyond head.weight none", "rank 1: embed.weight lies at"),
    ],
)
def test_a_message_that_one_rank_cannot_take_is_refused_by_all(
    world: World, senders: list[Streamer], script: str, why: str
) -> None:
    _, reply = play(world, senders, (WHOLE, script))
    assert not reply.success
    assert why in reply.message
    assert (reply.outcome, reply.tensors) == (UpdateOutcome.PARTIAL, 1)
    told = [one.told(5) for one in senders]
    assert told[0] == told[1]
    assert told[0][:2] == ["ok"] * 2
    assert told[0][2] == told[0][3] != "ok"


def test_a_stream_that_ends_early_on_one_rank_ends_on_all(world: World, senders: list[Streamer]) -> None:
    _, reply = play(world, senders, ("buffer embed.weight none", "buffer failure"))
    assert not reply.success
    assert "the sender gave up: ValueError: a disk is full (rank 1)" in reply.message
    told = senders[0].told(3)
    assert (told[0], told[2]) == ("ok", "ok"), "it hears of it, and goes on to its end"
    assert "a disk is full (rank 1)" in told[1]
    assert senders[1].told(2) == ["ok", "ok"]


def test_what_one_rank_cannot_let_go_of_is_told(world: World, senders: list[Streamer]) -> None:
    _, reply = play(world, senders, (WHOLE, WHOLE), **{"let go": "fail"})
    assert "boom (rank 1)" in reply.message
    assert [one.told(5) for one in senders] == [["ok"] * 5] * 2


def without_a_socket() -> Record:
    rank = make_rank()

    def script(rank: Rank) -> None:
        rank.request("flying", A, 9)
        rank.scheduler.step()
        rank.do(UpdateWeightsFromStream("s", sockets={"rank-0": "ipc:///none"}, abort_all_requests=True))
        rank.run("flying")

    return rank.play(script)


def test_a_rank_without_a_stream_refuses_for_all_and_nothing_is_aborted(world: World) -> None:
    first = agree(world.play(without_a_socket))
    assert first.replies["s"].message.startswith(
        "rank 1: InvalidOperation: Exactly one of the sockets must be that of a device"
    )
    assert first.finishes["flying"].kind is FinishKind.LENGTH
