"""A fleet over the workers of sglang-router, and the router over engines that the fleet steers."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from devicekit.cli import main
from tests.server.conftest import Models, Serve, Server

PATIENCE = 120.0  # seconds for the router to find its workers, on a busy machine
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        importlib.util.find_spec("sglang_router") is None,
        reason="sglang-router is not installed: pip install sglang-router",
    ),
]


@dataclass
class Gateway:
    """A router in a process of its own, and the engines behind it."""

    http: httpx.Client
    engines: tuple[Server, Server]

    def says(self) -> set[str]:
        """What comes by the router to a prompt, asked so often that each engine answers."""
        params = {"max_new_tokens": 8, "temperature": 0}
        bodies = [{"text": f"{'x' * number} The sea", "sampling_params": params} for number in range(8)]
        return {
            str(self.http.post("/generate", json=one).raise_for_status().json()["text"]) for one in bodies
        }

    def workers(self) -> list[str]:
        listed: list[dict[str, str]] = self.http.get("/workers").json()["workers"]
        return sorted(one["url"].rstrip("/") for one in listed)

    def register(self, url: str) -> None:
        """Have the router take one more engine."""
        assert self.http.post("/workers", json={"url": url}).status_code < 300
        deadline = time.monotonic() + PATIENCE
        while url not in self.workers():
            assert time.monotonic() < deadline, "the router has not found its new worker"
            time.sleep(0.1)


@pytest.fixture
def gateway(serve: Serve) -> Iterator[Gateway]:
    with ExitStack() as stack:
        pair = (stack.enter_context(serve(kv_tokens=4096)), stack.enter_context(serve(kv_tokens=4096)))
        with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as other:
            port, figures = free.getsockname()[1], other.getsockname()[1]
        command = [sys.executable, "-m", "sglang_router.launch_router", "--policy", "round_robin"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(figures)]
        command += ["--worker-urls", *(one.url for one in pair)]
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        stack.callback(process.send_signal, signal.SIGKILL)
        http = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        )
        made, deadline = Gateway(http, pair), time.monotonic() + PATIENCE
        while not _both_serve(made):
            assert time.monotonic() < deadline, "the router has not found its workers"
            assert process.poll() is None, "the router has ended"
            time.sleep(0.1)
        yield made


def _both_serve(gateway: Gateway) -> bool:
    try:
        return gateway.workers() == sorted(one.url for one in gateway.engines) and bool(gateway.says())
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def steer(file: Path, gateway: Gateway, *verb: str) -> int:
    return main(["fleet", "--file", str(file), "--gateway", str(gateway.http.base_url), *verb])


def test_the_routers_workers_are_updated_as_one_and_requests_by_it_see_one_version(
    gateway: Gateway, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = tmp_path / "fleet.json", gateway.says()
    assert steer(file, gateway, "adopt") == 0, capsys.readouterr().out
    update = ("update", "--model-path", str(models.b), "--weight-version", "v2")
    assert steer(file, gateway, *update) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert all(f"ok    {one.url}" in shown for one in gateway.engines)
    versions = [one.get("/weight_version").json()["weight_version"] for one in gateway.engines]
    assert versions == ["v2", "v2"]
    after = gateway.says()
    assert after.isdisjoint(before)
    assert gateway.http.post("/flush_cache").status_code == 200, "the one verb that the router sends to all"
    back = ("update", "--rolling", "--model-path", str(models.a), "--weight-version", "v3")
    assert steer(file, gateway, *back) == 0, capsys.readouterr().out
    assert gateway.says() == before


def test_a_worker_that_has_ended_is_expected_still(
    gateway: Gateway, serve: Serve, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, (one, other) = tmp_path / "fleet.json", gateway.engines
    with serve(kv_tokens=4096) as gone:
        gateway.register(gone.url)
        assert steer(file, gateway, "adopt") == 0, capsys.readouterr().out
    assert gone.url in gateway.workers()
    update = ("update", "--model-path", str(models.b), "--weight-version", "v2")
    assert steer(file, gateway, *update) == 1
    shown = capsys.readouterr().out
    assert f"FAIL  {gone.url}" in shown
    assert "Nothing was changed" in shown
    assert one.get("/weight_version").json() == other.get("/weight_version").json()
    assert one.get("/weight_version").json()["weight_version"] != "v2"


def test_a_worker_that_is_registered_later_is_brought_the_fleets_weights(
    gateway: Gateway, serve: Serve, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fleet.json"
    assert steer(file, gateway, "adopt") == 0, capsys.readouterr().out
    update = ("update", "--model-path", str(models.b), "--weight-version", "v2")
    assert steer(file, gateway, *update) == 0, capsys.readouterr().out
    said = gateway.says()
    with serve(kv_tokens=4096, await_fleet=True) as late:
        gateway.register(late.url)
        assert late.get("/ready").status_code == 503
        assert steer(file, gateway, "tend") == 0, capsys.readouterr().out
        assert late.get("/ready").status_code == 200
        assert late.get("/weight_version").json()["weight_version"] == "v2"
        assert gateway.says() == said
