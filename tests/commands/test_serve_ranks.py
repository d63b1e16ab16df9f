"""`devicekit serve` as several ranks: real processes, real HTTP, and what clients see when a rank goes."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save

from devicekit.cli import main
from devicekit.engine import Engine
from devicekit.runners.transformers_runner import TransformersRunner

OPTIONS = ["--device", "cpu", "--kv-tokens", "2048", "--rank-timeout", "30", "--rank-heartbeat", "0.1"]
BOUND = 10.0  # seconds, a third of the timeout: what is noticed later was not noticed by itself
PROMPT = {"text": "Once upon", "sampling_params": {"max_new_tokens": 16, "temperature": 0}}
LONG = {
    "text": "The sea",
    "sampling_params": {"max_new_tokens": 400, "temperature": 0, "ignore_eos": True},
}


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=60)


def address(line: str) -> str:
    assert line.startswith("Serving on http://127.0.0.1:"), line
    return line.removeprefix("Serving on ").strip()


def alone(*paths: Path) -> list[str]:
    """What one rank says with the weights of each directory in turn."""
    engine = Engine.open(paths[0], "cpu")
    said = []
    for path in paths:
        engine.update_weights_from_disk(path)
        said.append(engine.generate(["Once upon"], max_new_tokens=16, temperature=0)[0].text)
    return said


def test_under_torchrun_two_ranks_serve_what_one_does_and_stop_when_told(
    checkpoints: tuple[Path, Path],
) -> None:
    first, second = checkpoints
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    serve = ["-m", "devicekit", "serve", "--model", str(first), "--port", "0", *OPTIONS]
    with subprocess.Popen(
        [*torchrun, *serve],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        with client(address(process.stdout.readline())) as http:
            said = [http.post("/generate", json=PROMPT).json()["text"]]
            update = http.post("/update_weights_from_disk", json={"model_path": str(second)})
            assert update.json()["success"], update.text
            with http.stream("POST", "/generate", json={**PROMPT, "stream": True}) as stream:
                events = [line for line in stream.iter_lines() if line.startswith("data: {")]
            said.append(json.loads(events[-1].removeprefix("data: "))["text"])
            assert len(events) > 2
            bias = base64.b64encode(save({"model.norm.weight": torch.ones(64)})).decode()
            for payloads, status in (([bias], 200), ([bias, bias], 200), ([bias, "AAAA"], 400)):
                given = {"serialized_named_tensors": payloads, "weight_version": "pushed"}
                assert http.post("/update_weights_from_tensor", json=given).status_code == status
            assert http.post("/flush_cache").json()["success"]
            assert http.post("/pause_generation", json={"mode": "retract"}).json()["changed"]
            assert http.post("/continue_generation").json()["changed"]
            assert http.post("/release_memory_occupation", json={"tags": ["kv_cache"]}).json()["success"]
            assert "kv_cache is released" in http.get("/health").text
            assert http.post("/resume_memory_occupation").json()["success"]
            assert http.get("/health").json() == {"status": "ok"}
            assert http.get("/server_info").json()["ranks"] == 2
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert out == ""
        assert "rank" not in err.replace("torchrun", ""), err  # nobody lost anybody
    assert said == alone(first, second)


# -- Ranks started one by one, as the ones that a launcher on each of several nodes starts ------------------


def serve_as_rank(
    environment: dict[str, str], output: str, arguments: list[str], faulty: bool, begun: Event
) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    if faulty:
        _replace_loading(begun)
    sys.exit(main(["serve", *arguments]))


def _replace_loading(begun: Event) -> None:
    """Reading a directory of the name of a fault never ends, or fails."""
    stage = TransformersRunner.stage_from_disk

    def other(self: TransformersRunner, path: str) -> object:
        if Path(path).name == "hangs":
            begun.set()
            threading.Event().wait()
        if Path(path).name == "fails":
            raise OSError("the disk of this node is full")
        return stage(self, path)

    TransformersRunner.stage_from_disk = other  # type: ignore[method-assign, assignment]


class Ranks:
    """The processes of two ranks. The store that they meet at is this process's, as it is torchrun's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["devicekit.runners.transformers_runner", "devicekit.server.app", __name__]
        )
        self.begun = self._context.Event()
        self.processes: list[BaseProcess] = []

    def start(self, model: Path, *arguments: str, others: Path | None = None, faulty: bool = False) -> None:
        """Start both, rank 1 with the model ``others``, or with faults in reading one."""
        for rank in range(2):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            path = str(others if rank and others is not None else model)
            given = ["--model", path, "--port", "0", *OPTIONS, *arguments]
            if rank:  # it must not listen: this machine has no such address
                given += ["--host", "203.0.113.1"]
            process = self._context.Process(
                target=serve_as_rank,
                args=(environment, str(self._file(rank)), given, bool(rank) and faulty, self.begun),
                daemon=True,
            )
            process.start()
            self.processes.append(process)

    def url(self) -> str:
        file = self._file(0)
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().endswith("\n"):
            assert time.monotonic() < deadline, "rank 0 does not serve"
            assert self.processes[0].is_alive(), file.read_text()
            self.processes[0].join(0.05)
        return address(file.read_text().splitlines()[0])

    def said(self, rank: int) -> str:
        return self._file(rank).read_text()

    def status(self, rank: int) -> int | None:
        """The exit status of a rank, waited for."""
        self.processes[rank].join(BOUND)
        return self.processes[rank].exitcode

    def signal(self, rank: int, number: signal.Signals) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.txt"


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path)
    yield ranks
    ranks.close()


def test_a_rank_killed_in_the_middle_of_an_update_is_named_and_nothing_acknowledged_is_lost(
    ranks: Ranks, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("new", "fails", "hangs"):
        shutil.copytree(checkpoints[1], tmp_path / name)
    ranks.start(checkpoints[0], "--allowed-weights-root", str(tmp_path), faulty=True)

    def update(name: str, **more: object) -> httpx.Response:
        return http.post("/update_weights_from_disk", json={"model_path": str(tmp_path / name), **more})

    with ExitStack() as stack:
        http = stack.enter_context(client(ranks.url()))
        calls = stack.enter_context(ThreadPoolExecutor())
        refused = update("fails")
        assert refused.status_code == 400
        assert "rank 1: OSError: the disk of this node is full" in refused.json()["message"]
        assert update("new", weight_version="acknowledged").json()["success"]
        stream = stack.enter_context(http.stream("POST", "/generate", json={**LONG, "stream": True}))
        lines = stream.iter_lines()
        next(lines)
        http.post("/pause_generation", json={"mode": "in_place"})
        waiting = calls.submit(http.post, "/generate", json=PROMPT)
        flush = calls.submit(http.post, "/flush_cache?timeout=1000")
        hanging = calls.submit(update, "hangs")
        assert ranks.begun.wait(20)

        ranks.signal(1, signal.SIGKILL)
        killed = time.monotonic()
        answers = [one.result().text for one in (hanging, waiting, flush)] + ["".join(lines)]
        assert time.monotonic() - killed < BOUND
        for answer in answers:
            assert "Lost rank 1: its process has ended or stands still" in answer
        assert hanging.result().json()["outcome"] == "unchanged"
        assert http.get("/weight_version").json() == {"weight_version": "acknowledged"}
        for response in (http.get("/health"), http.post("/generate", json=PROMPT)):
            assert response.status_code == 503
            assert "Lost rank 1" in response.text
        assert "Lost rank 1" in http.post("/flush_cache").json()["message"]
        assert "devicekit_healthy 0.0" in http.get("/metrics").text
    ranks.signal(0, signal.SIGTERM)
    assert ranks.status(0) in (1, -signal.SIGTERM)


def test_when_rank_0_is_killed_the_others_end_and_say_why(
    ranks: Ranks, checkpoints: tuple[Path, Path]
) -> None:
    ranks.start(checkpoints[0])
    with client(ranks.url()) as http, ThreadPoolExecutor() as calls:
        answer = calls.submit(http.post, "/generate", json=LONG)
        http.get("/health")
        ranks.signal(0, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            answer.result()
    assert ranks.status(1) == 1
    assert ranks.said(1).splitlines()[-1] == (
        "devicekit serve: rank 1: Lost rank 0: its process has ended or stands still"
    )


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_signal_to_any_rank_ends_all_of_them_in_good_order(
    ranks: Ranks, checkpoints: tuple[Path, Path], rank: int, number: signal.Signals
) -> None:
    ranks.start(checkpoints[0])
    with client(ranks.url()) as http, ThreadPoolExecutor() as calls:
        answer = calls.submit(http.post, "/generate", json=LONG)
        while http.get("/v1/loads").json()["loads"][0]["num_running_reqs"] == 0:
            assert not answer.done()
        ranks.signal(rank, number)
        assert answer.result().json()["meta_info"]["completion_tokens"] == 400
    assert ranks.status(1) == 0
    assert ranks.status(0) == (0 if rank else 130)
    assert ranks.said(1) == ""
    told = ["devicekit serve: rank 1 was told to stop."] if rank else []
    assert ranks.said(0).splitlines()[1:] == told


def test_a_rank_that_is_told_twice_ends_even_if_rank_0_stands_still(
    ranks: Ranks, checkpoints: tuple[Path, Path]
) -> None:
    ranks.start(checkpoints[0])
    ranks.url()
    ranks.signal(0, signal.SIGSTOP)
    deadline = time.monotonic() + BOUND
    while ranks.processes[1].is_alive():
        assert time.monotonic() < deadline
        ranks.signal(1, signal.SIGTERM)
        ranks.processes[1].join(0.1)
    assert ranks.status(1) == -signal.SIGTERM


def test_what_rank_0_cannot_have_ends_every_rank_before_a_model_is_loaded(
    ranks: Ranks, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ranks.start(tmp_path / "nothing", "--port", str(taken.getsockname()[1]))
        assert [ranks.status(rank) for rank in range(2)] == [1, 1]
    for rank in range(2):
        assert f"devicekit serve: rank {rank}: rank 0: ConfigurationError: Cannot listen" in ranks.said(rank)


def test_a_model_that_one_rank_does_not_have_is_named_with_that_rank(
    ranks: Ranks, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    ranks.start(checkpoints[0], others=tmp_path / "nothing")
    assert [ranks.status(rank) for rank in range(2)] == [1, 1]
    for rank in range(2):
        assert f"devicekit serve: rank {rank}: rank 1: " in ranks.said(rank)
        assert "no model directory" in ranks.said(rank)
