"""A server that is killed in the middle of a verb: its client is told, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from devicekit.testing.waiting import wait_until
from tests.server.conftest import LONG, Models

_FOR_LONG = {"text": "The sea", "sampling_params": LONG, "stream": True}


@dataclass
class Process:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def generate(self) -> object:
        document = {"text": "The sea", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}
        return httpx.post(f"{self.url}/generate", json=document, timeout=60).json()["output_ids"]

    def pending(self) -> list[object]:
        found: list[object] = httpx.get(f"{self.url}/status", timeout=60).json()["pending"]
        return found


@contextmanager
def serving(model: Path, scratch: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "devicekit", "serve", "--model", str(model), "--port", "0"]
    options = ["--device", "cpu", "--kv-tokens", "4096", "--log-level", "error"]
    environ = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            line = next(one for one in process.stdout if one.startswith("Serving on "))
            yield Process(process, line.split()[-1])
        finally:
            process.kill()


def _ask(url: str, path: str, document: dict[str, object], said: list[str]) -> None:
    try:
        said.append(str(httpx.post(f"{url}{path}", json=document, timeout=60).status_code))
    except httpx.TransportError as error:
        said.append(type(error).__name__)


WAITING: dict[str, dict[str, object]] = {
    "/flush_cache?timeout=600": {},
    "/drain": {},
    "/update_weights_from_disk": {"weight_version": "8"},
    "/begin_weight_update": {},
    "/transaction": {"weight_version": "9", "settle": "drain", "timeout": 600},
}
AT_ONCE: dict[str, dict[str, object]] = {
    "/pause_generation": {"mode": "retract"},
    "/continue_generation": {},
    "/abort_request": {"abort_all": True},
    "/release_memory_occupation": {},
    "/resume_memory_occupation": {},
    "/prepare_weight_update": {"update_id": "u", "weight_version": "8"},
    "/weights_checker": {"action": "checksum"},
    "/update_weight_version": {"new_version": "7"},
}
_THOROUGH = pytest.mark.thorough
_CASES = [
    pytest.param(path, marks=() if path == "/transaction" else _THOROUGH) for path in (*WAITING, *AT_ONCE)
]


@pytest.mark.parametrize("path", _CASES)
def test_a_server_that_is_killed_within_a_verb_leaves_nothing_behind(
    models: Models, tmp_path: Path, path: str
) -> None:
    document = {**WAITING, **AT_ONCE}[path]
    if "weight_version" in document:
        document = {"model_path": str(models.a), **document}
    before = {one: one.read_bytes() for one in sorted(models.a.iterdir())}
    said: list[str] = []
    with serving(models.a, tmp_path) as first:
        expected = first.generate()
        with httpx.stream("POST", f"{first.url}/generate", json=_FOR_LONG, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            asking = threading.Thread(target=_ask, args=(first.url, path, document, said))
            asking.start()
            if path in WAITING:
                wait_until(lambda: bool(first.pending()), 60.0)
            os.kill(first.process.pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                list(lines)
            asking.join(60)
            assert said, "the client waits for ever"
        assert first.process.wait(60) == -signal.SIGKILL
    assert {one: one.read_bytes() for one in sorted(models.a.iterdir())} == before
    with serving(models.a, tmp_path) as second:
        assert second.generate() == expected
        assert [*tmp_path.iterdir()] == []
