"""Clients of every kind while operators do whatever they like: everyone is answered, once, and nothing is lost.

`LOAD_SECONDS` and `LOAD_SEED` (environment) make it last longer, and differ, for soaks.
"""

from __future__ import annotations

import gc
import json
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.server.conftest import Models, Serve, Server, events

_SECONDS = float(os.environ.get("LOAD_SECONDS", "5"))
_SEED = int(os.environ.get("LOAD_SEED", "0"))
_CLIENTS = 6
_ENDS = ("stop", "length", "abort")


def test_every_request_is_answered_once_whatever_operators_do(
    serve: Serve, models: Models, record_property: Callable[[str, object], None]
) -> None:
    with serve(max_running=6, kv_tokens=1024, max_concurrent_requests=40) as server:
        first = _load(server, models, _SEED, max(1.0, _SECONDS / 5))
        before = _held()
        second = _load(server, models, _SEED + 1000, max(1.0, _SECONDS * 4 / 5))
        after = _held()
        accepted, gone, verbs = (a + b for a, b in zip(first, second, strict=True))
        assert accepted > 20
        # Every sequence that was taken on has ended exactly once. Of a client that left, nobody can say whether
        # its request had been taken on before it did.
        assert accepted <= _ended(server) <= accepted + gone
        for name, most in _GROWTH.items():
            assert after[name] - before[name] <= most, f"{name} grew: {before} before, {after} after"
        figures = {"seconds": _SECONDS, "sequences_answered_once": accepted, "clients_that_left": gone}
        held = {"held_before": before, "held_after": after, "growth_allowed": _GROWTH}
        for name, value in {**figures, "operations_answered": verbs, **held}.items():
            record_property(name, value if isinstance(value, (int, float)) else json.dumps(value))


def _load(server: Server, models: Models, seed: int, seconds: float) -> tuple[int, int, int]:
    """Clients and operators for a while, and then nothing is left. Sequences answered, and left; operations."""
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(_CLIENTS + 2) as pool:
        clients = [pool.submit(_client, server.url, seed + one, deadline) for one in range(_CLIENTS)]
        operators = [pool.submit(_operator, server.url, seed + one, deadline, models) for one in (100, 101)]
        verbs = [one.result() for one in operators]
        for path in ("/end_weight_update", "/resume_memory_occupation", "/continue_generation"):
            server.post(path)  # whatever state they left behind
        accepted, gone = (sum(column) for column in zip(*(one.result() for one in clients), strict=True))
    assert min(verbs) > 0
    server.eventually(lambda: server.load()["num_total_reqs"] == 0)
    flushed = server.get("/flush_cache", timeout=10)
    assert flushed.status_code == 200, flushed.text
    engine = server.get("/status").json()
    assert engine["engine"]["pages_free"] == engine["engine"]["pages_total"]
    assert (engine["in_flight"], engine["pending"], engine["status"]) == (0, [], "ok")
    return accepted, gone, sum(verbs)


# What may be more after four fifths of the time than after the first: nothing may grow with time. Histories and
# caches that are bounded may still fill up; clients are in this process, too.
_GROWTH = {"objects": 30_000, "descriptors": 8, "threads": 8, "resident_bytes": 96 << 20}


def _held() -> dict[str, int]:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return {
        "objects": len(gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
    }


def _client(url: str, seed: int, deadline: float) -> tuple[int, int]:
    """Sequences that were answered, and those that it walked away from."""
    draw = random.Random(seed)
    answered = gone = 0
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        while time.monotonic() < deadline:
            document = _document(draw)
            count = len(document["input_ids"]) * document["sampling_params"]["n"]
            kind = draw.choice(("whole", "whole", "stream", "leave"))
            if kind == "leave":
                gone += count
                _leave(http, document)
                continue
            answer = http.post("/generate", json={**document, "stream": kind == "stream"})
            if answer.status_code in (429, 503):  # too many, or memory is released: asked to come again
                continue
            assert answer.status_code == 200, answer.text
            found = list(events(answer)) if kind == "stream" else answer.json()
            ends = [one["meta_info"]["finish_reason"] for one in found if one["meta_info"]["finish_reason"]]
            assert [end["type"] in _ENDS for end in ends] == [True] * count
            answered += count
    return answered, gone


def _leave(http: httpx.Client, document: dict[str, object]) -> None:
    with http.stream("POST", "/generate", json={**document, "stream": True}) as answer:
        for _ in zip(range(2), answer.iter_raw(), strict=False):
            pass


def _document(draw: random.Random) -> dict[str, object]:
    prompts = [[draw.randrange(2, 300)] * draw.randrange(1, 60) for _ in range(draw.randrange(1, 4))]
    params = {
        "max_new_tokens": draw.randrange(1, 40),
        "n": draw.randrange(1, 3),
        "temperature": draw.random(),
    }
    return {"input_ids": prompts, "sampling_params": params}


def _operator(url: str, seed: int, deadline: float, models: Models) -> int:
    """How many verbs it got answered."""
    draw = random.Random(seed)
    done = 0
    update = {"model_path": str(models.b)}
    verbs = (
        ("GET", "/flush_cache", None),
        ("GET", "/flush_cache?timeout=0.2", None),
        ("POST", "/pause_generation", {"mode": "retract"}),
        ("POST", "/pause_generation", {"mode": "in_place"}),
        ("POST", "/pause_generation", {"mode": "abort"}),
        ("POST", "/continue_generation", {}),
        ("POST", "/continue_generation", {}),
        ("POST", "/continue_generation", {}),
        ("POST", "/abort_request", {"abort_all": True}),
        ("POST", "/update_weights_from_disk", update),
        ("POST", "/update_weights_from_disk", {**update, "abort_all_requests": True, "flush_cache": False}),
        ("GET", "/health", None),
        ("POST", "/drain", {"timeout": 0.2}),
        (
            "POST",
            "/transaction",
            {**update, "settle": draw.choice(("drain", "retract", "abort")), "timeout": 0.5},
        ),
        ("POST", "/begin_weight_update", {}),
        ("POST", "/end_weight_update", {}),
        ("POST", "/end_weight_update", {}),
        ("POST", "/release_memory_occupation", {"tags": ["kv_cache"]}),
        ("POST", "/release_memory_occupation", {"backup_weights": True}),
        ("POST", "/resume_memory_occupation", {}),
        ("POST", "/resume_memory_occupation", {}),
        ("GET", "/v1/loads", None),
        ("GET", "/metrics", None),
    )
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
        while time.monotonic() < deadline:
            method, path, document = draw.choice(verbs)
            answer = http.request(method, path, json=document)
            assert answer.status_code in (200, 400, 409), answer.text
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
            done += 1
    return done


def _ended(server: Server) -> int:
    total = 0.0
    for line in server.get("/metrics").text.splitlines():
        if line.startswith('devicekit_requests_total{finish="'):
            total += float(line.rpartition(" ")[2])
    return int(total)
