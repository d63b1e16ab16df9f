"""Weights streamed through a shared buffer by another process, which speaks as checkpoint-engine does."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devicekit.scheduling.messages import Refusal, Selector, UpdateOutcome, UpdateReply
from devicekit.weights.operations import (
    BeginWeightUpdate,
    EndWeightUpdate,
    SessionReply,
    UpdateWeightsFromStream,
)
from tests.hash_runner import expected, make_weights, salt_of
from tests.programs import Program
from tests.scheduling.rig import Rig
from tools.warm import Warm

NEW = make_weights(5)

# Takes an address and a script from every line that it reads, and says what it was answered, step by step.
SENDER = """
import os, pickle, signal, sys, torch, zmq
from devicekit import get_device
from tests.hash_runner import make_weights
from devicekit.weights.handles import handle_to_json

device, weights, context = get_device("cpu"), make_weights(5), zmq.Context()
buffer = torch.zeros(128, dtype=torch.uint8)  # not enough for all of them at once
handle = handle_to_json(device.export_ipc(buffer))

def put(name, tensor, **lies):
    content = tensor.contiguous().view(-1).view(torch.uint8)
    buffer[: len(content)] = content
    return [{"name": name, "shape": tensor.shape, "dtype": tensor.dtype, "offset": 0, **lies}]

MESSAGES = {
    "buffer": lambda: handle,
    "none": lambda: None,
    "failure": lambda: ValueError("a disk is full"),
    "attack": lambda: print,
    "nonsense": lambda: [{"name": "embed.weight"}],
    "beyond": lambda: put("embed.weight", weights["embed.weight"], offset=64),
    "hollow": lambda: put("embed.weight", torch.zeros(0, 4)),
    "negative": lambda: put("embed.weight", torch.zeros(1, 4), shape=(-1, -4)),
    "stranger": lambda: put("nobody.weight", weights["embed.weight"]),
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
for line in sys.stdin:
    address, *script = line.split()
    with context.socket(zmq.REQ) as socket:
        socket.bind(address)
        for step in script:
            socket.send_pyobj(MESSAGES.get(step, lambda: put(step, weights[step]))())
            answer = socket.recv()
            print("ok" if answer == b"" else pickle.loads(answer), flush=True)
"""
ALL = "embed.weight layers.0.bias head.weight"


@pytest.fixture(scope="module")
def sender(warm: Warm) -> Iterator[Program]:
    command = [*warm.python, "-c", SENDER]
    with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/s"


@dataclass
class Streamer:
    """Has the sender send, and the engine receive."""

    process: subprocess.Popen[str]
    address: str

    def send(self, script: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.address} {script}\n")
        self.process.stdin.flush()

    def told(self, steps: int) -> list[str]:
        """What the sender was answered."""
        assert self.process.stdout is not None
        return [self.process.stdout.readline().rstrip("\n") for _ in range(steps)]

    def __call__(self, rig: Rig, script: str, **fields: object) -> tuple[UpdateReply, list[str]]:
        self.send(script)
        operation = UpdateWeightsFromStream("s", sockets={"any": self.address}, **fields)
        reply = rig.do(operation, UpdateReply, steps=10_000_000)
        return reply, self.told(len(script.split()) - ("die" in script))


@pytest.fixture
def stream(sender: subprocess.Popen[str], address: str) -> Streamer:
    return Streamer(sender, address)


def test_weights_arrive_bucket_by_bucket(rig: Rig, stream: Streamer) -> None:
    reply, told = stream(rig, f"buffer {ALL} none", weight_version="7")
    assert reply.success, reply
    assert told == ["ok"] * 5
    assert (reply.outcome, reply.tensors, reply.weight_version) == (UpdateOutcome.UPDATED, 3, "7")
    assert reply.bytes == sum(one.nbytes for one in NEW.values())
    assert reply.flush is not None
    assert reply.flush.success
    assert rig.salt == salt_of(NEW)
    request = rig.add([1, 2, 3], 5)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 5, salt_of(NEW))


def test_running_requests_end_first_and_none_starts_before_the_stream_has_ended(
    rig: Rig, stream: Streamer
) -> None:
    before, old = rig.add([1, 2, 3], 30), rig.salt
    rig.step(3)
    rig.post(UpdateWeightsFromStream("s", sockets={"any": stream.address}))
    rig.step()
    after = rig.add([4, 5, 6], 5)
    stream.send(f"buffer {ALL} none")
    while "s" not in rig.replies:
        rig.step()
        assert after not in rig.outputs or "s" in rig.replies
    assert stream.told(5) == ["ok"] * 5
    rig.run()
    assert rig.outputs[before] == expected([1, 2, 3], 30, old)
    assert rig.outputs[after] == expected([4, 5, 6], 5, salt_of(NEW))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("embed.weight buffer none", "before the buffer"),
        ("buffer nonsense none", "name, shape, dtype and offset"),
        ("buffer beyond none", "lies at bytes 64 to 192"),
        ("buffer hollow none", "embed.weight has shape"),
        ("buffer negative none", "name, shape, dtype and offset"),
        ("buffer stranger none", "nobody.weight is unknown"),
        ("attack buffer none", "asks for builtins.print"),
        ("buffer failure", "ValueError: a disk is full"),
        ("none", "it was empty"),
    ],
)
def test_what_makes_no_sense_is_told_to_both_sides_and_nothing_is_written(
    rig: Rig, stream: Streamer, script: str, words: str
) -> None:
    before = rig.salt
    reply, told = stream(rig, script)
    assert (reply.success, reply.refusal, reply.outcome) == (False, Refusal.FAILED, UpdateOutcome.UNCHANGED)
    assert words in reply.message
    assert len(told) == len(script.split())
    assert told[-1] == "ok"  # the end of a stream is taken note of, whatever became of it
    assert any(words in line for line in told) or "failure" in script or script == "none"
    assert rig.salt == before
    assert rig.scheduler.state.gate.may_run
    assert rig.scheduler.state.gate.admitting


def test_a_failure_in_the_middle_writes_no_more_and_is_partial(rig: Rig, stream: Streamer) -> None:
    reply, told = stream(rig, "buffer embed.weight stranger head.weight none")
    assert (reply.success, reply.outcome, reply.tensors) == (False, UpdateOutcome.PARTIAL, 1)
    assert [line == "ok" for line in told] == [True, True, False, False, True]
    assert rig.scheduler.state.gate.may_run
    assert rig.runner.weights["embed.weight"].equal(NEW["embed.weight"])
    assert not rig.runner.weights["head.weight"].equal(NEW["head.weight"])


def test_a_sender_that_is_killed_is_noticed_at_once(rig: Rig, address: str, warm: Warm) -> None:
    """The rig's clock stands still: nothing here is a timeout."""
    command = [*warm.python, "-c", SENDER]
    with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        reply, told = Streamer(process, address)(rig, "buffer embed.weight die")
        process.wait(60)
    assert (reply.success, reply.outcome) == (False, UpdateOutcome.PARTIAL)
    assert "the sender is gone" in reply.message
    assert told == ["ok", "ok"]
    assert rig.scheduler.state.gate.may_run


def test_a_sender_that_never_speaks_is_given_up(rig: Rig, address: str) -> None:
    before = rig.snapshot()
    rig.post(UpdateWeightsFromStream("s", sockets={"any": address}, timeout=30.0))
    rig.step(3)
    assert not rig.scheduler.state.gate.may_run
    rig.clock.time += 30
    rig.step(2)
    assert "nothing came for 30 s" in rig.replies["s"].message
    assert rig.snapshot() == before


def test_a_stream_within_a_session_belongs_to_it(rig: Rig, stream: Streamer) -> None:
    assert rig.do(BeginWeightUpdate("b"), SessionReply).success
    reply, _ = stream(rig, f"buffer {ALL} none")
    assert reply.success
    assert not rig.scheduler.state.gate.may_run
    assert rig.do(EndWeightUpdate("e"), SessionReply).updates == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sockets": {}}, "of 0 sockets, 0 are"),
        ({"sockets": {"a": "ipc:///x", "b": "ipc:///y"}}, "of 2 sockets, 2 are"),
        ({"sockets": {"a": "tcp://127.0.0.1:80"}}, "within a machine"),
        ({"sockets": {"a": "ipc://"}}, "no address"),
        ({"sockets": {"a": "ipc:///x"}, "timeout": float("inf")}, "positive number of seconds"),
        ({"sockets": {"a": "ipc:///x"}, "selector": Selector.DRAFT}, "no draft model"),
    ],
)
def test_a_stream_that_makes_no_sense_is_invalid(rig: Rig, fields: dict[str, object], words: str) -> None:
    before = rig.snapshot()
    reply = rig.do(UpdateWeightsFromStream("s", **fields), UpdateReply)
    assert (reply.refusal, rig.snapshot()) == (Refusal.INVALID, before)
    assert words in reply.message
