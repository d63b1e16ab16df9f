"""The flows of reinforcement-learning frameworks, written as their own clients are, retries and all."""

from __future__ import annotations

import base64
import os
import pickle
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from safetensors.torch import load_file, save

from tests.programs import Program
from tests.server.conftest import LONG, Models, Serve, Server
from tools.warm import Warm

_PAUSE = threading.Event().wait  # between two tries; a client's own patience, not a test's


class Slime:
    """The HTTP side of slime's engine: payload or {}, raise on a bad status, then parse JSON."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, endpoint: str, payload: dict[str, object] | None = None) -> object:
        response = requests.post(f"{self.url}/{endpoint}", json=payload or {}, timeout=30)
        response.raise_for_status()
        return response.json()

    def flush_cache(self) -> int:
        """How many tries it took."""
        for attempt in range(1, 61):
            response = requests.get(f"{self.url}/flush_cache", timeout=30)
            if response.status_code == 200:
                return attempt
            assert response.text
            _PAUSE(0.02)
        raise TimeoutError("Timeout while flushing cache.")

    def weight_version(self) -> str:
        response = requests.get(f"{self.url}/get_weight_version", timeout=30)
        response.raise_for_status()
        return response.json()["weight_version"]

    def abort(self) -> None:
        """Abort everything, and poll the load until there is none."""
        for _ in range(200):
            self.post("abort_request", {"abort_all": True})
            loads = requests.get(f"{self.url}/v1/loads?include=core", timeout=30).json()["loads"]
            if sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads) == 0:
                return
            _PAUSE(0.02)
        raise TimeoutError("requests are still running")


@pytest.fixture
def server(serve: Serve) -> Iterator[Server]:
    with serve() as running:
        yield running


def _boot(server: Server, path: str) -> None:
    for _ in range(100):
        if requests.get(f"{server.url}{path}", timeout=5).status_code == 200:
            return
        _PAUSE(0.02)
    raise TimeoutError(path)


def _rollout(server: Server, **more: object) -> dict[str, object]:
    """One request with the sampling parameters that slime sends."""
    params = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "max_new_tokens": 20,
        "stop": None,
        "stop_token_ids": None,
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
    }
    document = {"input_ids": [5, 6, 7], "sampling_params": params, "return_logprob": True, **more}
    response = requests.post(f"{server.url}/generate", json=document, timeout=30)
    response.raise_for_status()
    return response.json()


def test_slime_synchronises_weights(server: Server, models: Models) -> None:
    _boot(server, "/health_generate")
    slime = Slime(server.url)
    for version in range(1, 4):
        output = _rollout(server)
        pairs = [(token, logprob) for logprob, token, _ in output["meta_info"]["output_token_logprobs"]]
        assert [token for token, _ in pairs] == output["output_ids"]
        assert output["meta_info"]["finish_reason"]["type"] in ("stop", "length")
        slime.post("pause_generation")
        assert slime.flush_cache() == 1
        path = str(models.b if version % 2 else models.a)
        slime.post("update_weights_from_disk", {"model_path": path, "weight_version": str(version)})
        assert slime.weight_version() == str(version)
        slime.post("continue_generation")
        assert _rollout(server)["meta_info"]["weight_version"] == str(version)


def test_slime_synchronises_weights_under_load(server: Server, models: Models) -> None:
    slime = Slime(server.url)
    with ThreadPoolExecutor(8) as pool:
        rollouts = [pool.submit(_rollout, server, sampling_params=LONG) for _ in range(8)]
        server.eventually(lambda: server.load()["num_running_reqs"] == 8)
        slime.post("pause_generation")
        slime.flush_cache()
        slime.post("update_weights_from_disk", {"model_path": str(models.b), "weight_version": "1"})
        slime.post("continue_generation")
        reasons = [one.result()["meta_info"]["finish_reason"]["type"] for one in rollouts]
    assert reasons == ["abort"] * 8


def test_slime_aborts_a_rollout(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        rollouts = [pool.submit(_rollout, server, sampling_params=LONG) for _ in range(6)]
        server.eventually(lambda: server.load()["num_running_reqs"] == 6)
        Slime(server.url).abort()
        assert {one.result()["meta_info"]["finish_reason"]["type"] for one in rollouts} == {"abort"}


def test_slime_offloads_for_training_and_comes_back_in_two_stages(server: Server, models: Models) -> None:
    slime = Slime(server.url)
    slime.post("update_weights_from_disk", {"model_path": str(models.b)})
    expected = _greedy(server)
    slime.flush_cache()
    slime.post("release_memory_occupation")
    slime.post("resume_memory_occupation", {"tags": ["weights"]})
    tensors = [*load_file(models.b / "model.safetensors").items()]
    for part in (dict(tensors[:9]), dict(tensors[9:])):
        payload = {"serialized_named_tensors": [base64.b64encode(save(part)).decode()], "load_format": None}
        slime.post("update_weights_from_tensor", {**payload, "flush_cache": False, "weight_version": "4"})
    slime.post("resume_memory_occupation", {"tags": ["kv_cache", "device_graph"]})
    assert slime.weight_version() == "4"
    assert _greedy(server) == expected


TRAINER = """
import datetime, sys, torch, torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.distributed_c10d import PrefixStore, _new_process_group_helper, _world, rendezvous
torch.set_num_threads(1)
timeout = datetime.timedelta(seconds=30)
store, rank, size = next(rendezvous("tcp://127.0.0.1:" + sys.argv[1], 0, 2, timeout=timeout))
group, _ = _new_process_group_helper(
    2, 0, [], "gloo", PrefixStore("slime-pp_0", store), "slime-pp_0", timeout=timeout
)
_world.pg_group_ranks[group] = {0: 0, 1: 1}
print("joined", flush=True)
sys.stdin.readline()
for tensor in load_file(sys.argv[2]).values():
    dist.broadcast(tensor, src=0, group=group)
sys.stdin.readline()
"""


@pytest.mark.parametrize("as_text", [False, True], ids=["slime", "a port in words, as AReaL's"])
def test_weights_are_broadcast_over_a_process_group(
    server: Server, models: Models, as_text: bool, warm: Warm
) -> None:
    slime = Slime(server.url)
    file = models.b / "model.safetensors"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*warm.python, "-c", TRAINER, str(port), str(file)]
    with (
        ThreadPoolExecutor(2) as pool,
        Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer,
    ):
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        slime.post("pause_generation")
        slime.flush_cache()
        group = {"group_name": "slime-pp_0", "backend": "gloo"}
        place = {"master_address": "127.0.0.1", "master_port": str(port) if as_text else port}
        place |= {"rank_offset": 1, "world_size": 2}
        joined = pool.submit(slime.post, "init_weights_update_group", {**place, **group})
        assert trainer.stdout.readline() == "joined\n"
        assert joined.result()["success"] is True
        tensors = load_file(file)
        bucket = {
            "names": [*tensors],
            "dtypes": [str(one.dtype).removeprefix("torch.") for one in tensors.values()],
            "shapes": [[*one.shape] for one in tensors.values()],
            "group_name": "slime-pp_0",
            "flush_cache": False,
            "weight_version": "5",
        }
        updating = pool.submit(slime.post, "update_weights_from_distributed", bucket)
        trainer.stdin.write("go\n")
        trainer.stdin.flush()
        assert updating.result()["outcome"] == "updated"
        slime.post("continue_generation")
        slime.post("destroy_weights_update_group", {"group_name": "slime-pp_0"})
        trainer.stdin.write("end\n")
    assert slime.weight_version() == "5"
    pushed = _greedy(server)
    slime.post("update_weights_from_disk", {"model_path": str(models.b)})
    assert _greedy(server) == pushed


def test_slimes_monitor_sees_a_healthy_engine_through_a_pause(server: Server) -> None:
    def monitor() -> int:
        return requests.get(f"{server.url}/health_generate", timeout=5).status_code

    with server.running():
        assert monitor() == 200
        Slime(server.url).post("pause_generation", {"mode": "in_place"})
        assert monitor() == 200
        Slime(server.url).post("continue_generation")
        assert monitor() == 200


def _greedy(server: Server) -> list[int]:
    return server.generate(max_new_tokens=20, ignore_eos=True)["output_ids"]


def _retrying(call: Callable[[], requests.Response], attempts: int = 3) -> object:
    """verl's adapter: timeouts and lost connections are tried again, statuses are not, bodies may be anything."""
    for attempt in range(attempts):
        try:
            response = call()
            response.raise_for_status()
            try:
                return response.json()
            except ValueError:
                return {"status": response.text}
        except (requests.Timeout, requests.ConnectionError):
            _PAUSE(0.02 * 2**attempt)
    raise TimeoutError("no answer")


def _verl_flush(server: Server, attempts: int = 6) -> object:
    for _ in range(attempts):
        response = requests.get(f"{server.url}/flush_cache", params={"reset_connector": "true"}, timeout=60)
        if response.status_code == 200:
            return response.json()
        _PAUSE(0.02)
    return {}


def test_verl_starts_generates_and_clears(server: Server) -> None:
    _boot(server, "/health_generate")
    _boot(server, "/flush_cache")
    document = {
        "text": None,
        "input_ids": [5, 6, 7],
        "sampling_params": {
            "n": 1,
            "max_new_tokens": 10,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "temperature": 0,
            "top_p": 1,
            "top_k": -1,
            "ignore_eos": True,
            "min_new_tokens": 0,
            "skip_special_tokens": True,
            "spaces_between_special_tokens": True,
        },
        "image_data": None,
        "return_logprob": False,
        "logprob_start_len": None,
        "top_logprobs_num": None,
        "token_ids_logprob": None,
        "lora_path": None,
        "custom_logit_processor": None,
    }
    answer = _retrying(lambda: requests.post(f"{server.url}/generate", json=document, timeout=60))
    assert len(answer["output_ids"]) == 10
    assert _verl_flush(server)["success"] is True


def test_verl_aborts_all_by_a_pause_and_resumes(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        rollout = pool.submit(_rollout, server, sampling_params=LONG)
        server.eventually(lambda: server.load()["num_running_reqs"] == 1)
        _retrying(lambda: requests.post(f"{server.url}/pause_generation", json={"mode": "abort"}, timeout=60))
        assert rollout.result()["meta_info"]["finish_reason"]["type"] == "abort"
        assert _verl_flush(server, attempts=1)
        _retrying(lambda: requests.post(f"{server.url}/continue_generation", json={}, timeout=60))
        assert _rollout(server)["output_ids"]


def test_verl_sleeps_and_wakes(server: Server, models: Models) -> None:
    expected = _greedy(server)
    names = {"tags": ["kv_cache", "weights"], "reset_connector": True}
    _retrying(lambda: requests.post(f"{server.url}/release_memory_occupation", json=names, timeout=60))
    _retrying(
        lambda: requests.post(
            f"{server.url}/resume_memory_occupation", json={"tags": ["weights"]}, timeout=60
        )
    )
    # Weights are pushed while the KV cache is still away, and with flush_cache, as one of its trainers does.
    content = save(load_file(models.a / "model.safetensors"))
    push = {"serialized_named_tensors": [base64.b64encode(content).decode()], "flush_cache": True}
    _retrying(lambda: requests.post(f"{server.url}/update_weights_from_tensor", json=push, timeout=60))
    _retrying(
        lambda: requests.post(
            f"{server.url}/resume_memory_occupation", json={"tags": ["kv_cache"]}, timeout=60
        )
    )
    assert _verl_flush(server)["success"] is True
    assert _greedy(server) == expected


def _areal(server: Server, tokens: list[int], limit: int) -> tuple[list[int], list[float], str]:
    """What AReaL asks for and reads: tokens and log-probabilities out of the pairs, why it ended."""
    params = {
        "top_p": 1.0,
        "top_k": 100_000_000,
        "max_new_tokens": limit,
        "temperature": 0.0,
        "stop_token_ids": None,
        "ignore_eos": True,
        "skip_special_tokens": True,
        "frequency_penalty": 0.0,
    }
    document = {
        "input_ids": tokens,
        "image_data": None,
        "sampling_params": params,
        "return_logprob": True,
        "stream": False,
    }
    answer = _retrying(lambda: requests.post(f"{server.url}/generate", json=document, timeout=60))
    meta = answer["meta_info"]
    pairs = meta["output_token_logprobs"]
    return [one[1] for one in pairs], [one[0] for one in pairs], meta["finish_reason"]["type"]


def test_areal_goes_on_where_an_update_interrupted(server: Server, models: Models) -> None:
    """A pause hands back what was generated; AReaL asks again with it behind the prompt until it has enough."""
    prompt, limit = [5, 6, 7], 800

    def rollout() -> tuple[list[int], list[float], int]:
        tokens: list[int] = []
        logprobs: list[float] = []
        rounds, reason = 0, "abort"
        while reason == "abort" and len(tokens) < limit:
            more, scores, reason = _areal(server, prompt + tokens, limit - len(tokens))
            tokens, logprobs, rounds = tokens + more, logprobs + scores, rounds + 1
        return tokens, logprobs, rounds

    whole, _, _ = rollout()
    slime = Slime(server.url)
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(rollout)
        server.eventually(lambda: server.load()["num_running_reqs"] == 1)
        slime.post("pause_generation")
        update = {"model_path": str(models.a), "abort_all_requests": True}
        assert slime.post("update_weights_from_disk", update)["success"] is True
        slime.post("continue_generation")
        tokens, logprobs, rounds = pending.result()
    assert (tokens, len(logprobs)) == (whole, limit)  # the same weights again: nothing lost, nothing twice
    assert rounds > 1


def test_areal_offloads_and_loads(server: Server, models: Models) -> None:
    expected = _greedy(server)
    slime = Slime(server.url)
    slime.post("pause_generation")
    slime.post("release_memory_occupation")
    slime.post("resume_memory_occupation", {"tags": ["weights"]})
    slime.post("update_weights_from_disk", {"model_path": str(models.a), "abort_all_requests": True})
    slime.post("resume_memory_occupation", {"tags": ["kv_cache"]})
    slime.post("continue_generation")
    assert _greedy(server) == expected


@pytest.mark.parametrize(
    ("endpoint", "payload", "status", "word"),
    [
        ("generate", {"input_ids": [5], "return_routed_experts": True}, 400, "return_routed_experts"),
        ("generate", {"input_ids": [5], "lora_path": "actor-v1"}, 400, "lora_path"),
        ("load_lora_adapter", {"lora_name": "actor-v1", "lora_path": "/actor"}, 404, "load_lora_adapter"),
    ],
)
def test_what_areal_may_ask_for_and_is_not_there_is_refused_by_name(
    server: Server, endpoint: str, payload: dict[str, object], status: int, word: str
) -> None:
    answer = server.post(f"/{endpoint}", payload)
    assert answer.status_code == status
    assert word in answer.json()["error"]["message"]


# A trainer with the modules that its pickles name, sharing host memory, which is kept until it is told to end.
SHARING = """
import base64, dataclasses, io, json, sys, types, torch
import torch.multiprocessing
from multiprocessing.reduction import ForkingPickler
from safetensors.torch import load_file
torch.set_num_threads(1)
torch.multiprocessing.set_sharing_strategy("file_system")

def module(name, *classes):
    parent = name.rpartition(".")[0]
    if parent:
        module(parent)
    found = sys.modules.setdefault(name, types.ModuleType(name))
    found.__path__ = []
    for one in classes:
        one.__module__ = name
        setattr(found, one.__name__, one)

@dataclasses.dataclass
class FlattenedTensorMetadata:
    name: str
    shape: torch.Size
    dtype: torch.dtype
    start_idx: int
    end_idx: int
    numel: int

@dataclasses.dataclass
class LocalSerializedTensor:
    values: list

module("sglang.srt.weight_sync.tensor_bucket", FlattenedTensorMetadata)
module("sglang.srt.model_executor.model_runner", LocalSerializedTensor)

def serialize(value):
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(value)
    return buffer.getvalue()

tensors = load_file(sys.argv[1])
kind = sys.argv[2]
if kind == "flattened_bucket":
    flat = torch.cat([one.flatten().view(torch.uint8) for one in tensors.values()])
    metadata, at = [], 0
    for name, one in tensors.items():
        metadata.append(FlattenedTensorMetadata(name, one.shape, one.dtype, at, at + one.nbytes, one.numel()))
        at += one.nbytes
    payload = {"flattened_tensor": flat, "metadata": metadata}
elif kind == "per rank":
    payload = [(name, LocalSerializedTensor([serialize(one)])) for name, one in tensors.items()]
else:
    payload = list(tensors.items())
print(base64.b64encode(serialize(payload)).decode(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def trusting(serve: Serve) -> Iterator[Server]:
    with serve(allow_pickled_weights=True) as running:
        yield running


@pytest.mark.parametrize(
    ("kind", "load_format"),
    [("named", None), ("named", "direct"), ("per rank", None), ("flattened_bucket", "flattened_bucket")],
)
def test_trainers_that_share_tensors_by_pickle_are_understood_if_allowed(
    trusting: Server, models: Models, kind: str, load_format: str | None, warm: Warm
) -> None:
    slime = Slime(trusting.url)
    slime.post("update_weights_from_disk", {"model_path": str(models.b)})
    expected = _greedy(trusting)
    slime.post("update_weights_from_disk", {"model_path": str(models.a)})
    assert _greedy(trusting) != expected
    command = [*warm.python, "-c", SHARING, str(models.b / "model.safetensors"), kind]
    with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        payload = trainer.stdout.readline().strip()
        slime.post("pause_generation")
        slime.flush_cache()
        document = {"serialized_named_tensors": [payload], "load_format": load_format, "flush_cache": False}
        slime.post("update_weights_from_tensor", {**document, "weight_version": "8"})
        slime.post("continue_generation")
        trainer.stdin.write("end\n")
    assert slime.weight_version() == "8"
    assert _greedy(trusting) == expected


def test_pickles_are_refused_unless_allowed_and_then_only_of_tensors(
    server: Server, trusting: Server, tmp_path: Path
) -> None:
    class Attack:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'run'}",)

    document = {"serialized_named_tensors": [base64.b64encode(pickle.dumps(Attack())).decode()]}
    for one, words in ((server, "--allow-pickled-weights"), (trusting, "system")):
        answer = one.post("/update_weights_from_tensor", document)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
    assert not (tmp_path / "run").exists()
