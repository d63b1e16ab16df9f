"""The status page and the description of the API: complete, self-contained, live."""

from __future__ import annotations

import re

import pytest

from devicekit.release import ReleasePoint
from tests.server.conftest import POSITIONS, Models, Serve, Server


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_elsewhere(shared: Server, path: str) -> None:
    answer = shared.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"(src|href)=.?(https?:)?//|@import|url\(", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "prefers-color-scheme: dark" in answer.text


def test_the_status_shows_requests_pools_blockers_and_operations(shared: Server, models: Models) -> None:
    shared.get("/flush_cache")
    with shared.running():
        shared.get("/flush_cache")
        status = shared.get("/status").json()
    assert (status["status"], status["model"]) == ("ok", "a")
    engine = status["engine"]
    assert engine["running"] == 1
    assert engine["blockers"] == [{"name": "running", "count": 1}]
    assert engine["pages_free"] < engine["pages_total"]
    refused, done, *_ = status["operations"]
    assert (refused["operation"], refused["success"]) == ("Flush", False)
    assert "running=1" in refused["message"]
    assert done["success"] is True
    assert status["samples"][-1]["pages_free"] <= engine["pages_total"]


def test_every_endpoint_is_described(shared: Server) -> None:
    document = shared.get("/openapi.json").json()
    paths = document["paths"]
    assert {"/generate", "/v1/chat/completions", "/flush_cache", "/health", "/get_weight_version"} <= set(
        paths
    )
    assert set(paths["/flush_cache"]) == {"get", "post"}
    names = [one["name"] for one in paths["/flush_cache"]["get"]["parameters"]]
    assert names == ["timeout", "empty_cache"]
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', shared.get("/openapi.json").text):
        assert reference in document["components"]["schemas"]


def test_described_endpoints_exist(serve: Serve) -> None:
    with serve() as server:
        for path, methods in server.get("/openapi.json").json()["paths"].items():
            for method in methods:
                answer = server.http.request(method, path, json={"mode": 0, "abort_all": "?"})
                assert answer.status_code in (200, 400, 503), (method, path, answer.text)


# -- Metrics and information ----------------------------------------------------------------------------------


def _metric(server: Server, name: str) -> float:
    for line in server.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"there is no metric {name}")


def test_metrics_count_what_happens(shared: Server, models: Models) -> None:
    shared.get("/flush_cache")
    before = _metric(shared, "devicekit_output_tokens_total")
    shared.generate(list(range(2, 50)), max_new_tokens=5, ignore_eos=True)
    shared.generate(list(range(2, 50)), max_new_tokens=5, ignore_eos=True)
    assert _metric(shared, "devicekit_output_tokens_total") == before + 10
    assert _metric(shared, "devicekit_cached_tokens_total") == 32
    assert _metric(shared, 'devicekit_pages{state="cached"}') > 0
    assert _metric(shared, 'devicekit_pages{state="used"}') == 0
    shared.post("/update_weights_from_disk", {"model_path": str(models.a)})
    assert _metric(shared, 'devicekit_weight_update_seconds_count{source="disk"}') == 1
    assert _metric(shared, 'devicekit_release_points_total{emptied="true",point="flush"}') >= 1


def test_metrics_show_blockers_pauses_and_what_waits(shared: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, shared.running(rid="one"):
        shared.post("/pause_generation", {"mode": "in_place"})
        waiting = pool.submit(shared.get, "/flush_cache", timeout=20)
        shared.eventually(lambda: bool(shared.get("/status").json()["pending"]))
        assert _metric(shared, "devicekit_paused") == 1
        assert _metric(shared, "devicekit_running_requests") == 1
        assert _metric(shared, 'devicekit_blockers{name="running"}') == 1
        assert _metric(shared, 'devicekit_operation_pending_seconds{operation="Flush"}') > 0
        shared.post("/abort_request", {"rid": "one"})
        assert waiting.result().status_code == 200
        shared.post("/continue_generation")
    assert _metric(shared, "devicekit_paused") == 0


def _pool(server: Server, name: str = "pages") -> dict[str, float]:
    states = ("available", "evictable", "protected", "owned", "missing")
    return {one: _metric(server, f'devicekit_pool_ids{{pool="{name}",state="{one}"}}') for one in states}


def test_metrics_account_for_every_page(serve: Serve) -> None:
    with serve(kv_tokens=1024) as server:
        assert _metric(server, 'devicekit_pool_largest_free_run{pool="pages"}') == 64
        server.generate(list(range(2, 50)), max_new_tokens=5)
        with server.running(input_ids=list(range(2, 50)), text=None) as tokens:
            next(tokens)  # the second one: by now its keys have a page behind the prompt's
            server.post("/pause_generation", {"mode": "in_place"})
            server.eventually(lambda: _pool(server)["owned"] > 0)
            pages, rows = _pool(server), _pool(server, "rows")
            assert pages["protected"] == 3  # of the prompt, but not its last token's
            assert (pages["missing"], rows["missing"], rows["owned"]) == (0, 0, 1)
            assert sum(pages.values()) == _metric(server, 'devicekit_pool_size{pool="pages"}') == 64
            load = server.get("/v1/loads", include="pools").json()["loads"][0]
            assert {term: load["pools"][f"pages_{term}"] for term in pages} == pages


def test_metrics_show_how_scattered_free_pages_are(serve: Serve) -> None:
    with serve(kv_tokens=1024) as server:
        kv = server.serving.engine.scheduler.state.kv
        taken = kv.pages.take_array(64)
        kv.pages.give(taken[taken % 8 != 0])
        assert _metric(server, 'devicekit_pool_largest_free_run{pool="pages"}') == 7
        assert _metric(server, 'devicekit_pool_ids{pool="pages",state="available"}') == 56
        assert _metric(server, 'devicekit_pool_ids{pool="pages",state="missing"}') == 8
        assert server.get("/health").json()["status"] == "degraded"


def test_bytes_that_nobody_counted_are_no_metric(serve: Serve) -> None:
    with serve() as server:
        released = 'devicekit_released_bytes_total{point="flush"}'
        assert _metric(server, released) == 0
        server.get("/flush_cache")
        counters = server.serving.engine.scheduler.state.releases.counters[ReleasePoint.FLUSH]
        assert (counters.emptied, counters.counted) == (1, 0)  # this backend does not say what came back
        assert released not in server.get("/metrics").text


def test_loads_have_sections_and_a_format_for_prometheus(shared: Server) -> None:
    [load] = shared.get("/v1/loads", include="core,memory,lora").json()["loads"]
    assert load["num_running_reqs"] == load["num_waiting_reqs"] == 0
    assert load["memory"]["token_capacity"] == load["max_total_num_tokens"]
    assert "queues" not in load
    assert shared.get("/v1/loads", include="everything").status_code == 400
    assert shared.get("/v1/loads", dp_rank=3).json()["loads"] == []
    text = shared.get("/v1/loads", format="prometheus").text
    assert 'devicekit_core_num_running_reqs{dp_rank="0"} 0\n' in text


def test_the_model_and_the_server_describe_themselves(shared: Server, models: Models) -> None:
    for path in ("/model_info", "/get_model_info"):
        info = shared.get(path).json()
        assert (info["model_path"], info["is_generation"]) == (str(models.a), True)
        assert info["max_context_length"] == POSITIONS
    captured = shared.get("/server_info").json()["captured"]
    assert "lacks create_graph" in captured["refusal"]
    for path in ("/server_info", "/get_server_info"):
        info = shared.get(path).json()
        assert info["internal_states"][0]["memory_usage"]["token_capacity"] > 0
        assert info["allowed_weights_roots"] == [str(models.root.resolve())]


def test_the_status_shows_requests_with_their_age_failures_and_folded_repetitions(serve: Serve) -> None:
    with serve() as server:
        for _ in range(3):
            server.post("/continue_generation")
        with server.running(rid="long one"):
            status = server.get("/status").json()
            assert [one["id"] for one in status["requests"]] == ["long one"]
            assert status["requests"][0]["seconds"] > 0
        assert (status["operations"][0]["operation"], status["operations"][0]["times"]) == ("Continue", 3)
        assert status["failures"] == []
        server.eventually(lambda: server.load()["num_running_reqs"] == 0)

        def fail(batch: object) -> None:
            raise RuntimeError("a bug")

        server.serving.engine.runner.step = fail
        server.post("/generate", {"text": "Pages", "rid": "unlucky"})
        [failure] = server.get("/status").json()["failures"]
        assert failure["request"] == "unlucky"
        assert "a bug" in failure["message"]
