"""`devicekit serve` as an operator meets it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from devicekit.cli import main
from examples.checkpoints import write_example_checkpoint
from tests.programs import Program
from tools.warm import Warm


def test_it_serves_until_it_is_told_to_stop(warm: Warm, tmp_path: Path) -> None:
    model = write_example_checkpoint(tmp_path / "model", seed=1)
    command = [*warm.python, "-m", "devicekit.cli", "serve", "--model", str(model), "--device", "cpu"]
    with Program(
        [*command, "--port", "0", "--kv-tokens", "512", "--policy", "longest_prefix"],
        stdout=subprocess.PIPE,
    ) as process:
        url = process.address()
        assert url.startswith("http://127.0.0.1:")
        document = {"text": "a", "sampling_params": {"max_new_tokens": 2}}
        assert httpx.post(f"{url}/generate", json=document, trust_env=False, timeout=30).status_code == 200
        assert (
            httpx.get(f"{url}/server_info", trust_env=False, timeout=30).json()["policy"] == "longest_prefix"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)


def test_without_its_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "devicekit.server.run", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--model", "anything"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "uvicorn is not installed" in line
    assert "pip install 'devicekit[serve]'" in line


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(tmp_path / "nothing"), "--device", "cpu"]) == 1
    assert "no model directory" in capsys.readouterr().err


def test_an_address_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    model = write_example_checkpoint(tmp_path / "model", seed=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(model), "--device", "cpu", "--port", port]) == 1
    assert f"port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "99999"], "port must be from 0 to 65535"),
        (["--api-key", ""], "api_key is empty"),
        (["--admin-api-key", " "], "admin_api_key is empty"),
        (["--max-body-bytes", "-1"], "max_body_bytes must be at least 1"),
        (["--max-concurrent-requests", "0"], "max_concurrent_requests must be at least 1"),
        (["--allowed-weights-root", "/nowhere"], "no directory /nowhere"),
        (["--chat-template", "/nowhere"], "chat template cannot be read"),
        (["--page-size", "0"], "page_size must be a whole number of at least 1"),
        (["--kv-tokens", "0"], "kv_tokens must be a whole number of at least 1"),
        (["--max-slowdown", "1"], "max_slowdown must be above 1"),
        (["--max-batch-tokens", "0"], "max_batch_tokens must be a whole number of at least 1"),
        (["--max-running-requests", "0"], "max_running must be a whole number of at least 1"),
        (["--host-kv-tokens", "-1"], "host_kv_tokens must be a whole number of at least 0"),
        (["--policy", "lifo"], "one of 'fcfs', 'priority', 'longest_prefix', not 'lifo'"),
        (["--decode-graphs"], "decode_graphs cannot be had: backend"),
        (["--conservativeness", "nan"], "conservativeness must be a finite number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_makes_no_sense_is_one_line(
    checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    command = ["serve", "--model", str(checkpoints[0]), "--device", "cpu", "--port", "0"]
    assert main([*command, *options]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
