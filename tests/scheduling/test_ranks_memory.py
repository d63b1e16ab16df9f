"""Several ranks and what is outside of them: a trainer that broadcasts weights, and memory that is not there."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from devicekit.scheduling.messages import Refusal
from devicekit.weights.operations import (
    InitUpdateGroup,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromDistributed,
    UpdateWeightsFromTensor,
)
from tests.hash_runner import make_weights, salt_of
from tests.scheduling.processes import World, Worlds
from tests.scheduling.ranked_world import Rank, Record, agree, make_rank

NEW = make_weights(5)
DESCRIPTION = {
    "names": tuple(NEW),
    "dtypes": tuple(str(one.dtype).removeprefix("torch.") for one in NEW.values()),
    "shapes": tuple(tuple(one.shape) for one in NEW.values()),
}


@pytest.fixture
def world(worlds: Worlds) -> World:
    return worlds(2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def trained(port: int, refuses: bool) -> Record:
    """Ranks 0 and 1 serve; rank 2 is the trainer."""
    among = dist.new_group([0, 1])
    if dist.get_rank() == 2:
        if not refuses:
            _train(port)
        return Record()
    rank = make_rank(among=among)
    if refuses and rank.number == 1:
        rank.weights.groups.rank = 7

    def script(rank: Rank) -> None:
        rank.do(InitUpdateGroup("init", "127.0.0.1", port, world_size=3, timeout=20.0), steps=5000)
        rank.do(UpdateWeightsFromDistributed("u", **DESCRIPTION), steps=5000)  # type: ignore[arg-type]

    record = rank.play(script)
    rank.weights.groups.close()
    return record


def _train(port: int) -> None:
    """As trainers do: join as rank 0 of a group of its own name, then broadcast every weight."""
    timeout, name = timedelta(seconds=20), "weight_update_group"
    store, _, _ = next(rendezvous(f"tcp://127.0.0.1:{port}", 0, 3, timeout=timeout))
    group, _ = distributed_c10d._new_process_group_helper(
        3,
        0,
        [],
        dist.Backend("gloo"),
        PrefixStore(name, store),
        name,  # type: ignore[arg-type]
        timeout=timeout,
    )
    distributed_c10d._world.pg_group_ranks[group] = {one: one for one in range(3)}
    for tensor in NEW.values():
        group.broadcast(tensor, 0).wait()
    dist.destroy_process_group(group)


def test_memory_that_one_rank_cannot_have_back_is_missing_on_all(world: World) -> None:
    first = agree(world.play(memory_that_does_not_come_back))
    assert "rank 1: OutOfMemoryError: no more" in first.replies["resume"].message
    assert first.notes["held"] is True
    assert first.replies["again"].success
    assert first.replies["u"].success
    assert first.state["holds"] == []


def memory_that_does_not_come_back() -> Record:
    rank = make_rank()
    region = rank.runner.pool
    resume, attempts = region.resume, 0

    def failing() -> int:
        nonlocal attempts
        attempts += 1
        if attempts <= 2:
            raise torch.OutOfMemoryError("no more")
        return resume()

    if rank.number == 1:
        region.resume = failing  # type: ignore[method-assign]

    def script(rank: Rank) -> None:
        rank.do(ReleaseMemory("release"))
        rank.do(ResumeMemory("resume"))
        rank.record.notes["held"] = not rank.scheduler.state.gate.may_run
        rank.do(ResumeMemory("again"))
        rank.do(UpdateWeightsFromTensor("u", tensors=NEW))

    return rank.play(script)


def test_weights_of_a_trainer_reach_every_rank(worlds: Worlds) -> None:
    records = worlds(3).play(trained, free_port(), False)
    first = agree(records[:2])
    assert first.replies["init"].success
    assert first.replies["u"].success
    weights = first.state["weights"]
    assert isinstance(weights, tuple)
    assert weights[2] == salt_of(NEW)


def test_a_group_that_one_rank_cannot_join_is_joined_by_none(worlds: Worlds) -> None:
    records = worlds(3).play(trained, free_port(), True)
    first = agree(records[:2])
    assert first.replies["init"].message.startswith("rank 1: InvalidOperation: Rank 8 does not fit")
    assert first.replies["u"].refusal is Refusal.CONFLICT
