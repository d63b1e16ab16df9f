"""An application on Ray Serve that asks for keys, grows under load, loses a replica, and shrinks again."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from examples.checkpoints import write_example_checkpoint

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds for Ray to start a replica, on a busy machine
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'devicekit[ray]'"
    ),
]


@dataclass
class Application:
    """What answers behind Ray's proxy."""

    http: httpx.Client
    user: dict[str, str] = field(default_factory=lambda: {"Authorization": "Bearer for-clients"})
    admin: dict[str, str] = field(default_factory=lambda: {"Authorization": "Bearer for-operators"})

    def generate(self, key: dict[str, str], tokens: int = 8) -> httpx.Response:
        params = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body = {"text": "The sea", "sampling_params": params}
        return self.http.post("/generate", json=body, headers=key)

    def says(self) -> set[str]:
        """What the replicas say to one prompt."""
        return {self.generate(self.user).json()["text"] for _ in range(12)}

    def replicas(self) -> list[str]:
        urls: list[str] = self.http.get("/list_workers", headers=self.admin).json()["urls"]
        return urls

    def until(self, count: int, *, without: str = "") -> list[str]:
        """Wait until so many replicas are there, all with the fleet's weights; their addresses."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = self.replicas()
            if len(found) == count and without not in found and self.http.get("/ready").status_code == 200:
                return found
            time.sleep(0.5)
        raise AssertionError(f"there are not {count} replicas: {self.http.get('/ready').text}")

    @contextlib.contextmanager
    def under_load(self, said: set[str]) -> Iterator[list[int]]:
        """Eight clients that ask without a pause; what they were told, and the status of what failed."""
        ended, failed = threading.Event(), list[int]()

        def ask() -> None:
            while not ended.is_set():
                answer = self.generate(self.user, 100)
                if answer.status_code == 200:
                    said.add(answer.json()["text"])
                else:
                    failed.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for one in threads:
            one.start()
        try:
            yield failed
        finally:
            ended.set()
            for one in threads:
                one.join()


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    root = tmp_path_factory.mktemp("keyed")
    for seed in (1, 2):
        write_example_checkpoint(root / f"v{seed}", seed=seed)
    (root / "key").write_text("for-clients\n")
    (root / "admin-key").write_text("for-operators\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.ray_serve.keyed", str(root), str(port)]
    with (
        (root / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while (line := process.stdout.readline()) != "serving\n":
                assert line, (root / "log").read_text()[-4000:]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as http:
                yield Application(http)
        finally:
            process.stdin.close()
            process.wait(120)


def _process_at(url: str) -> int:
    """The process that listens at a replica's own address."""
    port = f"{int(url.rpartition(':')[2]):04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:
        lines = [line.split() for line in table][1:]
    [inode] = [line[9] for line in lines if line[1].endswith(f":{port}") and line[3] == "0A"]
    for one in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(one) == f"socket:[{inode}]":
                return int(one.parts[2])
    raise AssertionError(f"nobody listens at {url}")


def test_clients_generate_and_operators_steer_each_with_their_own_key(application: Application) -> None:
    http, user, admin = application.http, application.user, application.admin
    assert application.generate({}).status_code == 401
    assert application.generate({"Authorization": "Bearer wrong"}).status_code == 401
    assert application.generate(user).status_code == 200
    assert application.generate(admin).status_code == 200
    for verb in ("/pause_generation", "/update_weights_from_disk", "/claim_for_fleet", "/fleet/tend"):
        for key in ({}, user):
            assert http.post(verb, json={}, headers=key).status_code == 401, verb
    assert http.get("/fleet/status", headers=user).status_code == 401
    status = http.get("/fleet/status", headers=admin)
    assert status.status_code == 200
    assert "for-operators" not in status.text
    assert http.get("/ready").status_code == 200, "probes carry no keys"
    [replica] = application.replicas()
    assert httpx.post(f"{replica}/pause_generation", json={}).status_code == 401, "nor past Ray"
    paused = http.post("/pause_generation", json={"mode": "in_place"}, headers=admin)
    assert paused.status_code == 200, paused.text
    assert http.get("/ready").status_code == 503
    assert http.post("/continue_generation", json={}, headers=admin).status_code == 200


def test_replicas_that_ray_adds_replaces_and_takes_away_never_serve_other_weights(
    application: Application, tmp_path: Path
) -> None:
    first = application.says()
    root = next(
        iter(
            Path(
                application.http.get("/fleet/status", headers=application.admin).json()["served"]["path"]
            ).parents
        )
    )
    update = {"model_path": str(root / "v2"), "weight_version": "v2"}
    done = application.http.post("/update_weights_from_disk", json=update, headers=application.admin)
    assert done.status_code == 200, done.text
    second = application.says()
    assert len(first) == len(second) == 1
    assert first != second
    said: set[str] = set()
    with application.under_load(said) as failed:
        grown = application.until(2)
        assert not failed, "a replica that is added costs no request"
        os.kill(_process_at(grown[0]), signal.SIGKILL)
        replaced = application.until(2, without=grown[0])
        assert grown[1] in replaced
    assert len(said) == 1, "every answer was of the weights of the fleet"
    assert application.says() == second
    application.until(1)
    back = {"model_path": str(root / "v1"), "weight_version": "v3", "rolling": True}
    done = application.http.post("/update_weights_from_disk", json=back, headers=application.admin)
    assert done.status_code == 200, done.text
    assert application.says() == first
