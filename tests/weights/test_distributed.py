"""Weights over a process group: a trainer in another process, over real gloo, that behaves or does not."""

from __future__ import annotations

import socket
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import pytest

from devicekit.scheduling.messages import Refusal, Reply, UpdateOutcome, UpdateReply, Withdraw
from devicekit.testing.waiting import wait_until
from devicekit.weights.operations import (
    DestroyUpdateGroup,
    GroupReply,
    InitUpdateGroup,
    UpdateWeightsFromDistributed,
)
from tests.hash_runner import expected, make_weights, salt_of
from tests.programs import Program
from tests.scheduling.rig import Rig
from tools.warm import Warm

NEW = make_weights(5)
DESCRIPTION = {
    "names": tuple(NEW),
    "dtypes": tuple(str(one.dtype).removeprefix("torch.") for one in NEW.values()),
    "shapes": tuple(tuple(one.shape) for one in NEW.values()),
}

# What reinforcement-learning trainers do, in their own way and with torch alone.
TRAINER = """
import sys, datetime, torch, torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _new_process_group_helper, _world, rendezvous
from tests.hash_runner import make_weights
torch.set_num_threads(1)
weights = make_weights(5)
timeout = datetime.timedelta(seconds=240)  # as the engine waits
store, rank, size = next(rendezvous("tcp://127.0.0.1:" + sys.argv[1], 0, 2, timeout=timeout))
store.set_timeout(timeout)
group, _ = _new_process_group_helper(2, 0, [], "gloo", PrefixStore("weight_update_group", store),
                                     "weight_update_group", timeout=timeout)
_world.pg_group_ranks[group] = {0: 0, 1: 1}
print("joined", flush=True)
def told(): return sys.stdin.readline().strip()
"""
BROADCAST = """
assert told() == "go"
for one in weights.values():
    dist.broadcast(one, src=0, group=group)
print("sent", flush=True)
told()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Trainer:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


Train = Callable[..., AbstractContextManager[Trainer]]


@pytest.fixture
def trainer(warm: Warm) -> Train:
    @contextmanager
    def start(code: str, port: int | None = None) -> Iterator[Trainer]:
        port = port or free_port()
        command = [*warm.python, "-c", TRAINER + textwrap.dedent(code), str(port)]
        with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                yield Trainer(process, port)
            finally:
                process.kill()

    return start


def until_answered(rig: Rig, identity: str, seconds: float = 240.0) -> Reply:
    """Step in real time: the other process takes some."""

    def answered() -> bool:
        rig.step()
        return identity in rig.replies

    wait_until(answered, seconds)
    return rig.replies[identity]


def join(rig: Rig, other: Trainer) -> GroupReply:
    # On a busy machine the other process takes long to begin.
    rig.post(InitUpdateGroup("init", "127.0.0.1", other.port, world_size=2, timeout=200.0))
    reply = until_answered(rig, "init")
    assert reply.success, reply
    assert isinstance(reply, GroupReply)
    return reply


@pytest.mark.thorough
def test_a_join_that_was_withdrawn_is_answered_and_leaves_the_group_to_the_next(
    rig: Rig, trainer: Train
) -> None:
    """The first one's time is not up, and the trainer comes where it was looked for."""
    port = free_port()
    rig.post(InitUpdateGroup("first", "127.0.0.1", port, world_size=2, timeout=60.0))
    rig.step(3)
    assert "first" not in rig.replies
    rig.post(Withdraw("w", "first"))
    first = until_answered(rig, "first")
    assert isinstance(first, GroupReply)
    assert (first.success, first.refusal) == (False, Refusal.WITHDRAWN)
    rig.post(InitUpdateGroup("second", "127.0.0.1", port, world_size=2, timeout=200.0))
    rig.step(3)
    with trainer(BROADCAST, port) as other:
        assert until_answered(rig, "second").success
        rig.post(UpdateWeightsFromDistributed("u", **DESCRIPTION))
        other.tell("go")
        assert until_answered(rig, "u").success
        assert rig.salt == salt_of(NEW)
        assert rig.do(DestroyUpdateGroup("d"), GroupReply).success


def test_a_broadcast_replaces_the_weights_and_requests_go_on_while_joining(rig: Rig, trainer: Train) -> None:
    before = rig.salt
    with trainer(BROADCAST) as other:
        request = rig.add([1, 2, 3], 12)
        reply = join(rig, other)
        assert (reply.rank, reply.backend, reply.group_name) == (1, "gloo", "weight_update_group")
        assert rig.outputs[request] == expected([1, 2, 3], 12, before), "joining must not stop the engine"
        rig.post(UpdateWeightsFromDistributed("u", **DESCRIPTION))
        rig.step(3)
        assert "u" not in rig.replies, "nothing was sent yet"
        assert rig.salt == before
        late = rig.add([4, 5, 6], 5)
        rig.run()
        assert rig.outputs[late] == expected([4, 5, 6], 5, before), "receiving must not stop the engine"
        other.tell("go")
        update = until_answered(rig, "u")
        assert isinstance(update, UpdateReply)
        assert (update.outcome, update.tensors) == (UpdateOutcome.UPDATED, 3)
        assert rig.salt == salt_of(NEW)
        assert rig.do(DestroyUpdateGroup("d"), GroupReply).success
        assert rig.do(DestroyUpdateGroup("d2"), GroupReply).refusal is Refusal.CONFLICT


def test_one_flat_bucket_in_one_broadcast(rig: Rig, trainer: Train) -> None:
    flat = """
    told()
    dist.broadcast(torch.cat([one.reshape(-1).view(torch.uint8) for one in weights.values()]), 0, group)
    told()
    """
    with trainer(flat) as other:
        join(rig, other)
        other.tell("go")
        rig.post(UpdateWeightsFromDistributed("u", **DESCRIPTION, flattened=True))
        assert until_answered(rig, "u").success
        assert rig.salt == salt_of(NEW)


def test_what_does_not_fit_is_received_and_then_refused_so_that_the_trainer_does_not_hang(
    rig: Rig, trainer: Train
) -> None:
    before = rig.snapshot()
    with trainer(BROADCAST) as other:
        join(rig, other)
        wrong = DESCRIPTION | {"names": ("embed.weight", "nobody.bias", "head.weight")}
        rig.post(UpdateWeightsFromDistributed("u", **wrong))
        other.tell("go")
        reply = until_answered(rig, "u")
        assert reply.refusal is Refusal.INVALID
        assert "nobody.bias is unknown" in reply.message
        assert other.hear() == "joined"
        assert other.hear() == "sent"
    assert rig.snapshot() == before


def test_a_trainer_that_dies_is_an_answer_and_not_a_hang(rig: Rig, trainer: Train) -> None:
    before = rig.snapshot()
    with trainer(BROADCAST) as other:
        join(rig, other)
        rig.post(UpdateWeightsFromDistributed("u", **DESCRIPTION))
        rig.step(3)
        other.process.kill()
        reply = until_answered(rig, "u")
        assert reply.refusal is Refusal.FAILED
        assert "Nothing was written" in reply.message
    assert rig.snapshot() == before
    assert rig.do(UpdateWeightsFromDistributed("u2", **DESCRIPTION), UpdateReply).refusal is Refusal.CONFLICT
    request = rig.add([1, 2, 3], 5)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 5, rig.salt)


def test_a_trainer_that_never_sends_is_given_up_in_the_end(rig: Rig, trainer: Train) -> None:
    before = rig.snapshot()
    with trainer(BROADCAST) as other:
        join(rig, other)
        rig.post(UpdateWeightsFromDistributed("u", **DESCRIPTION))
        rig.step(3)
        rig.clock.sleep(201)
        rig.step()
        assert "did not arrive in time" in rig.replies["u"].message
    assert rig.snapshot() == before


@contextmanager
def _closed() -> Iterator[int]:
    yield free_port()


@contextmanager
def _silent() -> Iterator[int]:
    """A port where connections are taken, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@contextmanager
def _talking(words: bytes) -> Iterator[int]:
    """A port of another service: it says something at once, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.sendall(words)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)


PORTS = {
    "closed": _closed,
    "silent": _silent,
    "hangs up": lambda: _talking(b""),
    "talks": lambda: _talking(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "babbles": lambda: _talking(b"\0\1" * 4096),
}


def test_joining_cannot_be_used_to_look_for_ports(rig: Rig) -> None:
    """Whatever is at an address, if anything is: the answer is the same, and comes when the time is up."""
    answers: dict[str, str] = {}
    with ExitStack() as open_ports:
        ports = {kind: open_ports.enter_context(make()) for kind, make in PORTS.items()}
        began = time.monotonic()
        for kind, port in ports.items():
            rig.post(InitUpdateGroup(kind, "127.0.0.1", port, 2, group_name=kind, timeout=2.0))
        rig.post(InitUpdateGroup("no name", "no-such-host.invalid", 80, 2, group_name="no name", timeout=2.0))
        for kind in (*ports, "no name"):
            reply = until_answered(rig, kind)
            assert isinstance(reply, GroupReply)
            assert time.monotonic() - began >= 2.0, f"{kind}: told before the time was up"
            assert reply.refusal is Refusal.FAILED
            said = reply.message.replace(f"127.0.0.1:{ports.get(kind)}", "ADDRESS")
            answers[kind] = said.replace("no-such-host.invalid:80", "ADDRESS").replace(repr(kind), "NAME")
    assert len(set(answers.values())) == 1, answers
    # With its port the silent one is gone, and so is who listened to it.
    wait_until(lambda: all("looking" not in one.name for one in threading.enumerate()), 30.0)


def test_a_master_that_is_not_there_is_said(rig: Rig) -> None:
    rig.post(InitUpdateGroup("init", "127.0.0.1", free_port(), world_size=2, timeout=0.5))
    reply = until_answered(rig, "init")
    assert reply.refusal is Refusal.FAILED
    assert "could not be joined" in reply.message


@pytest.mark.parametrize(
    "fields",
    [
        {"master_address": ""},
        {"master_address": "not a host"},
        {"master_port": 0},
        {"master_port": 70000},
        {"world_size": 1},
        {"world_size": 2**31},  # of which a table would be made
        {"rank_offset": 0},
        {"rank_offset": 2},
        {"timeout": 0.0},
        {"backend": "ncll"},
        {"backend": "cpu:gloo,cuda:ncll"},
    ],
)
def test_a_group_that_makes_no_sense_is_invalid(rig: Rig, fields: dict[str, object]) -> None:
    given = {"master_address": "127.0.0.1", "master_port": 1, "world_size": 2} | fields
    assert rig.do(InitUpdateGroup("i", **given), GroupReply).refusal is Refusal.INVALID  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"dtypes": ("float32",)},
        {"dtypes": ("float32", "nonsense", "bfloat16")},
        {"shapes": ((8, 4), (-1,), (4, 4))},
    ],
)
def test_a_description_that_makes_no_sense_is_invalid(rig: Rig, fields: dict[str, object]) -> None:
    operation = UpdateWeightsFromDistributed("u", **(DESCRIPTION | fields))  # type: ignore[arg-type]
    assert rig.do(operation, UpdateReply).refusal is Refusal.INVALID


def test_an_update_over_a_group_that_nobody_joined_is_a_conflict(rig: Rig) -> None:
    reply = rig.do(UpdateWeightsFromDistributed("u", **DESCRIPTION), UpdateReply)
    assert reply.refusal is Refusal.CONFLICT
    assert "'weight_update_group'" in reply.message
