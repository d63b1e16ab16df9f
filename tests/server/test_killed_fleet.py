"""kill -9 of engines and of the fleet process, at any moment of any verb, with clients all the while.

Every request of a client ends, with tokens or with an error. From when a command has confirmed an update until the
next verb that changes weights begins, nothing is served but that version.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from examples.checkpoints import write_example_checkpoint
from examples.fleet import Engine
from tests.seeds import drawn_seed
from tests.server.conftest import Models, Serve, Server

SEED = drawn_seed("FLEET_SEED")
RUNS = int(os.environ.get("FLEET_RUNS", "12"))
_PATIENCE = 300.0  # seconds, for anything at all on a busy machine


def command(file: Path, urls: list[str], *verb: str) -> subprocess.Popen[str]:
    named = [f"--engine={url}" for url in urls]
    arguments = [sys.executable, "-m", "devicekit", "fleet", "--file", str(file), *named, *verb]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_all(engines: list[Engine]) -> None:
    for one in engines:
        one.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=_PATIENCE)
    return process.returncode, out


@dataclass
class Clients:
    """Programs that ask one engine after the other, without a pause, and note which weights answered."""

    urls: list[str]
    # Begun, ended, version of each token's end.
    served: list[tuple[float, float, str]] = field(default_factory=list)
    refused: int = 0
    unanswered: list[str] = field(default_factory=list)

    def _ask(self, stop: threading.Event, number: int) -> None:
        body = {"text": "The sea", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}
        with httpx.Client(timeout=_PATIENCE, trust_env=False) as http:
            while not stop.is_set():
                number += 1
                url, begun = self.urls[number % len(self.urls)], time.monotonic()
                try:
                    answer = http.post(f"{url}/generate", json=body)
                except httpx.TimeoutException:
                    self.unanswered.append(url)
                except httpx.HTTPError:
                    self.refused += 1
                    time.sleep(0.05)
                else:
                    if answer.status_code == 200:
                        version = str(answer.json()["meta_info"]["weight_version"])
                        self.served.append((begun, time.monotonic(), version))
                    else:
                        self.refused += 1

    @contextmanager
    def running(self, count: int = 2) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(stop, number)) for number in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(_PATIENCE)
            self.unanswered += ["a client is there still" for thread in threads if thread.is_alive()]

    def versions(self, since: float, until: float) -> set[str]:
        """Of what was asked for and answered between two moments."""
        return {version for begun, ended, version in self.served if since <= begun and ended <= until}


def test_a_fleet_process_that_is_killed_is_followed_by_the_next(
    serve: Serve, models: Models, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    print(f"FLEET_SEED={SEED}")
    with ExitStack() as stack:
        pair: list[Server] = [stack.enter_context(serve(kv_tokens=2048)) for _ in range(2)]
        urls, file = [one.url for one in pair], tmp_path / "fleet.json"
        update = ["update", "--model-path", str(models.b), "--weight-version", "v2"]
        killed = command(file, urls, *update)
        # From its first claim on it is in the middle of something.
        while killed.poll() is None and pair[0].get("/server_info").json()["steered_by"] is None:
            pass
        time.sleep(rng.random() * 0.1)
        killed.kill()
        killed.communicate()
        other, out = finish(command(tmp_path / "other.json", urls, "pause"))
        if pair[0].get("/server_info").json()["steered_by"] is not None:
            assert other == 1, out
            assert f"The fleet of {file} (process {killed.pid} on" in out
        else:
            assert finish(command(tmp_path / "other.json", urls, "continue"))[0] == 0
        status, out = finish(command(file, urls, "resume"))
        assert status == 0 or "Nothing was changed" in out, out
        versions = {one.get("/weight_version").json()["weight_version"] for one in pair}
        assert len(versions) == 1, f"seed {SEED}: {out}"
        assert len({str(one.generate()["text"]) for one in pair}) == 1


@pytest.mark.thorough
@pytest.mark.timeout(3000)
def test_nothing_else_is_served_after_a_confirmed_update_whoever_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # several engines share the processors
    rng, file = random.Random(SEED), tmp_path / "fleet.json"
    print(f"FLEET_SEED={SEED}")
    paths = [write_example_checkpoint(tmp_path / f"v{seed}", seed=seed) for seed in (1, 2)]
    told: dict[str, int] = {}
    with ExitStack() as stack:
        engines = [Engine(paths[0], tmp_path) for _ in range(2)]
        stack.callback(kill_all, engines)
        urls = [one.url for one in engines]
        assert finish(command(file, urls, "adopt"))[0] == 0
        assert finish(command(file, urls, "tend"))[0] == 0
        clients = Clients(urls)
        with clients.running():
            for run in range(RUNS):
                version, path = f"v{SEED}.{run}", paths[(run + 1) % 2]
                update = ["update", "--model-path", str(path), "--weight-version", version]
                verb = rng.choice(
                    [update, update, [*update, "--take-back"], [*update, "--rolling"], ["flush"]]
                )
                process = command(file, urls, *verb)
                victim = rng.choice(["engine", "fleet", "both", "nobody"])
                time.sleep(rng.random() * 4)
                down = None
                if victim in ("engine", "both"):
                    down = rng.randrange(2)
                    engines[down].kill()
                if victim in ("fleet", "both"):
                    process.send_signal(signal.SIGKILL)
                status, out = finish(process)
                told[f"{victim} {'done' if status == 0 else 'failed'}"] = (
                    told.get(f"{victim} {'done' if status == 0 else 'failed'}", 0) + 1
                )
                if down is not None:
                    with suppress(Exception):
                        engines[down].kill()
                    engines[down] = Engine(paths[0], tmp_path, engines[down].port)
                outs = [out, finish(command(file, urls, "resume"))[1]]
                status, out = finish(command(file, urls, "tend"))
                outs.append(out)
                assert status == 0, f"seed {SEED}, run {run}, {victim} killed in {verb[0]}: {outs}"
                served = json.loads(file.read_text())["served"]["version"]
                since = time.monotonic()
                while not clients.versions(since, time.monotonic()):
                    assert time.monotonic() - since < _PATIENCE, outs
                    time.sleep(0.1)
                time.sleep(0.5)
                found = clients.versions(since, time.monotonic())
                assert found == {served}, f"seed {SEED}, run {run}, {victim} killed in {verb[0]}: {outs}"
    assert clients.unanswered == []
    print(
        f"{RUNS} runs; {told}; {len(clients.served)} requests served, {clients.refused} told that they failed"
    )
