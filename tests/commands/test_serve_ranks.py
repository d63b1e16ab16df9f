"""`devicekit serve` as several ranks: real processes, real HTTP, and what clients see when a rank goes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save

from devicekit.cli import main
from devicekit.engine import Engine
from tests.commands.serving_ranks import BOUND, COPIES, OPTIONS, Ranks, address
from tools.warm import Warm

PROMPT = {"text": "Once upon", "sampling_params": {"max_new_tokens": 16, "temperature": 0}}
LONG = {
    "text": "The sea",
    "sampling_params": {"max_new_tokens": 400, "temperature": 0, "ignore_eos": True},
}


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=60)


def alone(*paths: Path) -> list[str]:
    """What one rank says with the weights of each directory in turn."""
    engine = Engine.open(paths[0], "cpu")
    said = []
    for path in paths:
        engine.update_weights_from_disk(path)
        said.append(engine.generate(["Once upon"], max_new_tokens=16, temperature=0)[0].text)
    return said


def test_under_torchrun_two_ranks_serve_what_one_does_and_stop_when_told(
    checkpoints: tuple[Path, Path], warm: Warm
) -> None:
    first, second = checkpoints
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    roots = ["--allowed-weights-root", str(first.parent)]
    serve = ["-m", "devicekit", "serve", "--model", str(first), "--port", "0", *COPIES, *roots]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm.interpreter}
    with (
        subprocess.Popen(
            [*torchrun, *serve],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.terminate)  # whatever fails below
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
            sums = http.post("/weights_checker").json()["ranks"]
            assert [one["rank"] for one in sums] == [0, 1]
            assert sums[0]["checksum"] == sums[1]["checksum"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert out == ""
        # Nobody lost anybody. That one was told to stop may be said: it may hear of it before the other does.
        assert "Lost rank" not in err, err
    assert said == alone(first, second)


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


def test_ranks_that_hold_one_model_together_serve_what_one_does(
    ranks: Ranks, checkpoints: tuple[Path, Path]
) -> None:
    first, second = checkpoints
    roots = ["--allowed-weights-root", str(first.parent)]
    ranks.start(first, "--tensor-parallel", "2", *roots, options=OPTIONS)
    with client(ranks.url()) as http:
        said = [http.post("/generate", json=PROMPT).json()["text"]]
        update = http.post("/update_weights_from_disk", json={"model_path": str(second)})
        assert update.json()["success"], update.text
        said.append(http.post("/generate", json=PROMPT).json()["text"])
        sums = http.post("/weights_checker").json()["ranks"]
        assert sums[0]["checksum"] == sums[1]["checksum"]
        assert http.get("/server_info").json()["ranks"] == 2
    assert said == alone(first, second)
    ranks.signal(0, signal.SIGTERM)
    assert [ranks.status(0), ranks.status(1)] == [-signal.SIGTERM, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "devicekit fleet"),
        (["--tensor-parallel", "4"], "takes as many ranks, and there are 2"),
        (["--tensor-parallel", "2", "--copies"], "choose one"),
        (["--copies", "--split-partly"], "give tensor_parallel too"),
    ],
)
def test_ranks_that_were_not_told_what_for_are_refused(
    ranks: Ranks, checkpoints: tuple[Path, Path], arguments: list[str], words: str
) -> None:
    ranks.start(checkpoints[0], *arguments, options=OPTIONS)
    assert [ranks.status(0), ranks.status(1)] == [1, 1]
    assert words in ranks.said(0)
    assert words in ranks.said(1)


def test_one_process_holds_no_part_of_a_model(
    checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, words in (("2", "there is 1: torchrun --nproc-per-node 2"), ("0", "1 or more, not 0")):
        assert main(["serve", "--model", str(checkpoints[0]), "--tensor-parallel", number]) == 1
        assert words in capsys.readouterr().err
