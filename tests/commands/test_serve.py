"""`devicekit serve` as an operator meets it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from devicekit.cli import main
from devicekit.runners.example import write_example_checkpoint


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    model = write_example_checkpoint(tmp_path / "model", seed=1)
    command = [sys.executable, "-m", "devicekit.cli", "serve", "--model", str(model), "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--port", "0", "--kv-tokens", "512"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving on http://127.0.0.1:")
        url = line.removeprefix("Serving on ").strip()
        document = {"text": "a", "sampling_params": {"max_new_tokens": 2}}
        assert httpx.post(f"{url}/generate", json=document, trust_env=False, timeout=30).status_code == 200
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
