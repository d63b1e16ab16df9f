"""Weights in another process's memory, over HTTP: by handles, or streamed as checkpoint-engine streams them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.programs import Program
from tests.server.conftest import Models, Serve, Server
from tools.warm import Warm

# A trainer that shares every weight, tells the handles, and keeps them until it is told to end.
BY_HANDLE = """
import json, sys, torch
from safetensors.torch import load_file
from devicekit import get_device
from devicekit.weights.handles import handle_to_json
device, weights = get_device("cpu"), load_file(sys.argv[1])
print(json.dumps({name: handle_to_json(device.export_ipc(one)) for name, one in weights.items()}), flush=True)
sys.stdin.readline()
"""

# The sending half of checkpoint-engine: bind, have the engine called, then one bucket after the other.
STREAMED = """
import json, sys, threading, urllib.request, torch, zmq
from safetensors.torch import load_file
from devicekit import get_device
from devicekit.weights.handles import handle_to_json

path, url, address = sys.argv[1:]
weights = load_file(path)
buffer = torch.empty(max(one.nbytes for one in weights.values()), dtype=torch.uint8)
handle = handle_to_json(get_device("cpu").export_ipc(buffer))
socket = zmq.Context().socket(zmq.REQ)
socket.bind(address)

def call():
    body = {"zmq_handles": {"CPU-0": address}, "flush_cache": True, "weight_version": "12"}
    request = urllib.request.Request(
        f"{url}/update_weights_from_ipc", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        print(answer.read().decode(), flush=True)

calling = threading.Thread(target=call, daemon=True)
calling.start()
socket.send_pyobj(handle)
for count, (name, tensor) in enumerate(weights.items()):
    assert socket.recv() == b""
    print(f"acknowledged {count}", flush=True)
    sys.stdin.readline()
    buffer[: tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
    socket.send_pyobj([{"name": name, "shape": tensor.shape, "dtype": tensor.dtype, "offset": 0}])
assert socket.recv() == b""
socket.send_pyobj(None)
assert socket.recv() == b""
calling.join()
"""


Train = Callable[..., AbstractContextManager[Program]]


@pytest.fixture
def trainer(warm: Warm) -> Train:
    @contextmanager
    def start(source: str, *arguments: str, to_be_killed: bool = False) -> Iterator[Program]:
        python = [sys.executable] if to_be_killed else warm.python  # whose relay ends before it does
        command = [*python, "-c", source, *arguments]
        with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield process

    return start


@pytest.fixture(scope="module")
def trusting(serve: Serve) -> Iterator[Server]:
    with serve(allow_pickled_weights=True) as running:
        yield running


@pytest.fixture(scope="module")
def expected(trusting: Server, models: Models) -> list[int]:
    """What the second model says."""
    trusting.post("/update_weights_from_disk", {"model_path": str(models.b)})
    return _greedy(trusting)


@pytest.fixture
def server(trusting: Server, models: Models, expected: list[int]) -> Server:
    """A server with the first model's weights."""
    trusting.restore(models)
    document = {"model_path": str(models.a), "weight_version": "1"}
    assert trusting.post("/update_weights_from_disk", document).status_code == 200
    assert _greedy(trusting) != expected
    return trusting


def _greedy(server: Server) -> list[int]:
    return server.generate(max_new_tokens=20, ignore_eos=True)["output_ids"]


def _file(models: Models) -> str:
    return str(models.b / "model.safetensors")


def test_a_trainer_shares_its_weights_by_handles_in_json(
    server: Server, models: Models, expected: list[int], trainer: Train
) -> None:
    with trainer(BY_HANDLE, _file(models)) as process:
        handles = json.loads(process.stdout.readline())
        answer = server.post("/update_weights_from_ipc", {"handles": handles, "weight_version": "9"})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["outcome"], answer.json()["tensors"]) == ("updated", len(handles))
        process.communicate("end\n", timeout=60)
    assert _greedy(server) == expected
    assert server.get("/get_weight_version").json() == {"weight_version": "9"}


def test_a_trainer_that_was_killed_shares_nothing_any_more_and_nothing_is_written(
    server: Server, models: Models, trainer: Train
) -> None:
    before = _greedy(server)
    with trainer(BY_HANDLE, _file(models)) as process:
        handles = json.loads(process.stdout.readline())
        process.kill()
    server.eventually(lambda: not any(Path("/dev/shm", one["name"]).exists() for one in handles.values()))
    answer = server.post("/update_weights_from_ipc", {"handles": handles, "weight_version": "9"})
    assert (answer.status_code, answer.json()["outcome"]) == (400, "unchanged")
    assert "FileNotFoundError" in answer.json()["error"]["message"]
    assert _greedy(server) == before


def test_checkpoint_engines_stream_replaces_the_weights(
    server: Server, models: Models, expected: list[int], tmp_path: Path, trainer: Train
) -> None:
    with trainer(STREAMED, _file(models), server.url, f"ipc://{tmp_path}/s") as process:
        output, _ = process.communicate("\n" * 100, timeout=60)
    answer = json.loads(output.splitlines()[-1])
    assert (answer["success"], answer["outcome"], answer["weight_version"]) == (True, "updated", "12")
    assert _greedy(server) == expected


def test_a_trainer_killed_in_mid_stream_leaves_what_it_was_acknowledged_and_a_server_that_serves(
    server: Server, models: Models, expected: list[int], tmp_path: Path, trainer: Train
) -> None:
    with ThreadPoolExecutor(1) as pool:
        arguments = (_file(models), server.url, f"ipc://{tmp_path}/s")
        with trainer(STREAMED, *arguments, to_be_killed=True) as process:
            assert process.stdout.readline() == "acknowledged 0\n"
            waiting = pool.submit(server.generate)
            for count in (1, 2, 3):
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == f"acknowledged {count}\n"
            assert not waiting.done()
            process.send_signal(signal.SIGKILL)
        assert waiting.result()["output_ids"]  # what waited for the update to end has gone on
    [operation, *_] = server.get("/status").json()["operations"]
    assert (operation["operation"], operation["success"]) == ("UpdateWeightsFromStream", False)
    assert "3 weights are new" in operation["message"]
    assert server.get("/get_weight_version").json() == {"weight_version": "12"}
    server.post("/update_weights_from_disk", {"model_path": str(models.b)})  # and what was missing can be had
    assert _greedy(server) == expected


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "either handles or zmq_handles"),
        ({"handles": {}}, "handles"),
        ({"handles": {"a": {}}, "zmq_handles": {"a": "b"}}, "either"),
        ({"handles": {"model.norm.weight": {"name": "x"}}}, "must be an object of"),
        ({"handles": {"model.norm.weight": "text"}}, "handles"),
        ({"zmq_handles": {"a": "tcp://127.0.0.1:1"}}, "within a machine"),
        ({"zmq_handles": {"a": "ipc:///x", "b": "ipc:///y"}}, "2 are"),
        ({"zmq_handles": {"a": "ipc:///x"}, "timeout": 0}, "timeout"),
        ({"zmq_handles": {"a": "ipc:///x"}, "selector": "draft"}, "no draft model"),
    ],
)
def test_what_shares_nothing_is_refused(server: Server, document: dict[str, object], reason: str) -> None:
    answer = server.post("/update_weights_from_ipc", document)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    assert server.get("/health_generate").status_code == 200


def test_streams_are_pickles_and_are_refused_unless_allowed(shared: Server) -> None:
    answer = shared.post("/update_weights_from_ipc", {"zmq_handles": {"a": "ipc:///nowhere"}})
    assert answer.status_code == 400
    assert "--allow-pickled-weights" in answer.json()["error"]["message"]


def test_a_client_that_leaves_in_mid_stream_does_not_end_the_update(
    server: Server, models: Models, expected: list[int], tmp_path: Path, trainer: Train
) -> None:
    """Who asked for it and who sends it are two: the update is answered for by its stream alone."""
    address = f"ipc://{tmp_path}/s"
    with trainer(
        STREAMED, _file(models), "http://127.0.0.1:9", address
    ) as process:  # its own call reaches nobody
        patience = httpx.Timeout(30, read=0.3)
        with (
            httpx.Client(base_url=server.url, trust_env=False, timeout=patience) as impatient,
            pytest.raises(httpx.ReadTimeout),
        ):
            impatient.post("/update_weights_from_ipc", json={"zmq_handles": {"a": address}})
        process.communicate("\n" * 100, timeout=60)
    server.eventually(lambda: not server.get("/status").json()["pending"])
    assert _greedy(server) == expected
