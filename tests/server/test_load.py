"""Clients of every kind while operators do whatever they like: everyone is answered, once, and nothing is lost.

`LOAD_SECONDS`, `LOAD_REQUESTS` and `LOAD_SEED` (environment) make it last longer, and differ, for soaks: it goes
on until as many seconds have passed and as many requests to generate were sent.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from tests.server.conftest import Models, Serve, Server, events
from tests.server.mixed_requests import Mixed, mixed

_SECONDS = float(os.environ.get("LOAD_SECONDS", "5"))
_REQUESTS = int(os.environ.get("LOAD_REQUESTS", "100"))
_SEED = int(os.environ.get("LOAD_SEED", "0"))
_CLIENTS = 6
_ENDS = ("stop", "length", "abort", "tool_calls")


@dataclass(frozen=True)
class Load:
    """What a client, or all of them, did."""

    requests: int = 0
    answered: int = 0  # sequences
    left: int = 0  # sequences that clients walked away from
    turned_away: int = 0  # requests: there was no room, or nothing to generate with

    def __add__(self, other: Load) -> Load:
        each = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Load(*(one + another for one, another in each))


@dataclass(frozen=True)
class Until:
    """How long a load goes on."""

    deadline: float
    requests: int  # of each client

    def reached(self, requests: int) -> bool:
        return requests >= self.requests and time.monotonic() >= self.deadline


def test_every_request_is_answered_once_whatever_operators_do(
    serve: Serve, models: Models, record_property: Callable[[str, object], None]
) -> None:
    with serve(max_running=6, kv_tokens=1024, max_concurrent_requests=40) as server:
        first, operated = _load(server, models, _SEED, 0.2)
        before = _held()
        second, more = _load(server, models, _SEED + 1000, 0.8)
        after = _held()
        both = first + second
        assert both.answered > 20
        # Every sequence that was taken on has ended exactly once. Of a client that left, nobody can say whether
        # its request had been taken on before it did.
        assert both.answered <= _ended(server) <= both.answered + both.left
        for name, most in _GROWTH.items():
            assert after[name] - before[name] <= most, f"{name} grew: {before} before, {after} after"
        figures = {
            "requests": both.requests,
            "sequences_answered_once": both.answered,
            "sequences_left_by_clients": both.left,
            "requests_turned_away": both.turned_away,
            "operations_answered": operated + more,
        }
        held = {"held_before": before, "held_after": after, "growth_allowed": _GROWTH}
        for name, value in {**figures, **held}.items():
            record_property(name, value if isinstance(value, int) else json.dumps(value))


def _load(server: Server, models: Models, seed: int, share: float) -> tuple[Load, int]:
    """Clients and operators for a share of the time, and then nothing is left; and operations answered."""
    until = Until(time.monotonic() + max(1.0, _SECONDS * share), math.ceil(_REQUESTS * share / _CLIENTS))
    at_work = threading.Event()
    at_work.set()
    with ThreadPoolExecutor(_CLIENTS + 2) as pool:
        clients = [pool.submit(_client, server.url, seed + one, until) for one in range(_CLIENTS)]
        operators = [pool.submit(_operator, server.url, seed + one, at_work, models) for one in (100, 101)]
        try:
            done = sum((one.result() for one in clients), Load())
        finally:
            at_work.clear()
        verbs = [one.result() for one in operators]
        for path in ("/end_weight_update", "/resume_memory_occupation", "/continue_generation"):
            server.post(path)  # whatever state they left behind
    assert min(verbs) > 0
    server.eventually(lambda: server.load()["num_total_reqs"] == 0)
    flushed = server.get("/flush_cache", timeout=10)
    assert flushed.status_code == 200, flushed.text
    engine = server.get("/status").json()
    assert engine["engine"]["pages_free"] == engine["engine"]["pages_total"]
    assert (engine["in_flight"], engine["pending"], engine["status"]) == (0, [], "ok")
    return done, sum(verbs)


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


def _client(url: str, seed: int, until: Until) -> Load:
    draw = random.Random(seed)
    done = Load()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        while not until.reached(done.requests):
            asked = mixed(draw)
            kind = draw.choice(("whole", "whole", "stream", "leave"))
            done += _leave(http, asked) if kind == "leave" else _read(http, asked, kind == "stream")
    return done


def _read(http: httpx.Client, asked: Mixed, stream: bool) -> Load:
    answer = http.post(asked.path, json={**asked.body, "stream": stream})
    if answer.status_code in (429, 503):  # too many, or memory is released: asked to come again
        return Load(requests=1, turned_away=1)
    assert answer.status_code == 200, (answer.text, asked)
    found = [*events(answer)] if stream else answer.json()
    ends = asked.ends(found if isinstance(found, list) else [found])
    assert [end in _ENDS for end in ends] == [True] * asked.sequences, (ends, asked)
    return Load(requests=1, answered=asked.sequences)


def _leave(http: httpx.Client, asked: Mixed) -> Load:
    with http.stream("POST", asked.path, json={**asked.body, "stream": True}) as answer:
        for _ in zip(range(2), answer.iter_raw(), strict=False):
            pass
    return Load(requests=1, left=asked.sequences)


def _operator(url: str, seed: int, at_work: threading.Event, models: Models) -> int:
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
        while at_work.is_set() or not done:
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
