"""Memory occupation over HTTP: what is given back, what is refused, and what generation does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.conftest import Models, Serve, Server


@pytest.fixture
def server(serve: Serve) -> Iterator[Server]:
    with serve() as running:
        yield running


def _regions(document: dict[str, object]) -> dict[str, dict[str, object]]:
    return {one["tag"]: one for one in document["regions"]}


def test_release_says_how_much_it_gave_back_and_resume_takes_it_again(server: Server, models: Models) -> None:
    before = server.generate()["output_ids"]
    released = server.post("/release_memory_occupation")
    assert released.status_code == 200
    regions = _regions(released.json())
    assert regions["weights"]["bytes"] > 0
    assert regions["kv_cache"]["bytes"] > 0
    assert regions["graphs"]["present"] is False
    resumed = server.post("/resume_memory_occupation", {"tags": ["weights"]})
    assert resumed.status_code == 200
    assert resumed.json()["untrusted"] > 0
    assert server.post("/update_weights_from_disk", {"model_path": str(models.a)}).status_code == 200
    assert server.post("/resume_memory_occupation", {"tags": ["kv_cache", "device_graph"]}).status_code == 200
    assert server.generate()["output_ids"] == before


def test_metrics_count_what_was_given_back_and_taken_again(server: Server) -> None:
    released = _regions(server.post("/release_memory_occupation", {"backup_weights": True}).json())
    server.post("/release_memory_occupation")  # nothing to do
    server.post("/resume_memory_occupation", {"tags": ["kv_cache"]})
    name = "devicekit_memory_occupation_bytes_total"
    found = dict(
        line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if line.startswith(name)
    )
    assert {key: float(value) for key, value in found.items()} == {
        f'{name}{{operation="release",tag="kv_cache"}}': released["kv_cache"]["bytes"],
        f'{name}{{operation="release",tag="weights"}}': released["weights"]["bytes"],
        f'{name}{{operation="resume",tag="kv_cache"}}': released["kv_cache"]["bytes"],
    }


def test_a_backup_spares_the_push(server: Server) -> None:
    before = server.generate()["output_ids"]
    server.post("/release_memory_occupation", {"tags": ["weights"], "backup_weights": True})
    resumed = server.post("/resume_memory_occupation", {}).json()
    assert resumed["untrusted"] == 0
    assert server.generate()["output_ids"] == before


def test_doing_it_twice_is_fine_and_says_that_nothing_changed(server: Server) -> None:
    first, second = (server.get("/release_memory_occupation", tags="kv_cache").json() for _ in range(2))
    assert _regions(first)["kv_cache"]["changed"] is True
    assert _regions(second)["kv_cache"]["changed"] is False
    first, second = (server.get("/resume_memory_occupation").json() for _ in range(2))
    assert _regions(first)["kv_cache"]["changed"] is True
    assert _regions(second)["kv_cache"]["changed"] is False


def test_release_while_busy_is_409_with_what_is_in_the_way(server: Server) -> None:
    with server.running():
        answer = server.post("/release_memory_occupation")
    assert answer.status_code == 409
    assert answer.json()["blockers"] == [{"name": "running", "count": 1}]
    assert answer.json()["refusal"] == "busy"


@pytest.mark.parametrize("verb", ["release", "resume"])
def test_an_unknown_tag_is_400(server: Server, verb: str) -> None:
    answer = server.post(f"/{verb}_memory_occupation", {"tags": ["kv_cache", "attic"]})
    assert answer.status_code == 400
    assert "attic" in answer.json()["error"]["message"]
    assert server.generate()["output_ids"]


def test_requests_wait_while_memory_is_away_and_health_knows(server: Server) -> None:
    server.post("/release_memory_occupation", {"tags": ["kv_cache"]})
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.generate)
        server.eventually(lambda: server.load()["num_waiting_reqs"] == 1)
        assert server.get("/ready").status_code == 503
        for path in ("/health", "/health_generate"):
            answer = server.get(path)
            assert answer.status_code == 200
            assert "kv_cache is released" in answer.json()["message"]
        before = server.get("/status").json()["engine"]["steps"]
        for _ in range(100):
            server.get("/ping")
        assert server.get("/status").json()["engine"]["steps"] - before <= 5  # it sleeps
        refused = server.post("/continue_generation")
        assert not waiting.done()
        server.post("/resume_memory_occupation", {})
        assert waiting.result()["output_ids"]
    assert refused.status_code in (200, 400)
