"""What an operator's dashboard reads: latencies by endpoint, and SGLang's names where that is set."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from devicekit.device import Device
from devicekit.engine import Engine, EngineConfig
from devicekit.server.loop import EngineLoop
from devicekit.server.metrics import Metrics
from tests.server.conftest import Serve, Server


def families(server: Server) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    found = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        found[family.name] = [(one.name, one.labels, one.value) for one in family.samples]
    return found


def count(found: dict[str, list[tuple[str, dict[str, str], float]]], name: str, endpoint: str) -> float:
    return sum(
        value
        for sample, labels, value in found.get(name, ())
        if sample == f"{name}_count" and labels["endpoint"] == endpoint
    )


OURS = ("request_seconds", "first_token_seconds", "inter_token_seconds", "queue_seconds")
THEIRS = (
    "e2e_request_latency_seconds",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "queue_time_seconds",
)


def test_latencies_are_told_by_endpoint_under_both_names(serve: Serve) -> None:
    with serve(sglang_metrics=True, served_model_name="mine") as server:
        server.generate("Pages", max_new_tokens=4)
        body = {"prompt": "Pages", "max_tokens": 4, "temperature": 0}
        server.post("/v1/completions", body)
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "P"}], "max_tokens": 3})
        found = families(server)
        for ours, theirs in zip(OURS, THEIRS, strict=True):
            for endpoint in ("/generate", "/v1/completions", "/v1/chat/completions"):
                assert count(found, f"devicekit_{ours}", endpoint) == 1
                assert count(found, f"sglang:{theirs}", endpoint) == 1
        assert {labels["model_name"] for _, labels, _ in found["sglang:queue_time_seconds"]} == {"mine"}
        [(_, _, requests)] = found["sglang:num_requests"]
        [(_, _, tokens)] = found["sglang:generation_tokens"]
        assert (requests, tokens >= 9) == (3, True)
        for name in (
            "num_running_reqs",
            "num_queue_reqs",
            "token_usage",
            "gen_throughput",
            "num_used_tokens",
        ):
            assert found[f"sglang:{name}"]


def test_sglangs_names_are_not_there_unless_set(shared: Server) -> None:
    shared.generate("Pages", max_new_tokens=2)
    found = families(shared)
    assert not [name for name in found if name.startswith("sglang:")]
    assert count(found, "devicekit_request_seconds", "/generate") >= 1
    assert found["devicekit_invalid_logits"][0][2] == 0


def test_passes_that_only_decode_are_counted_by_how_they_ran(
    checkpoints: tuple[Path, Path], sim_device: Device
) -> None:
    engine = Engine.open(checkpoints[0], sim_device, config=EngineConfig(max_running=2, kv_tokens=512))
    engine.generate([[1, 2, 3]], max_new_tokens=9, temperature=0.0, ignore_eos=True)
    metrics = Metrics("m")
    metrics.watch(EngineLoop(engine.scheduler), engine.scheduler.state.releases, engine.graphs, 16)
    text = metrics.exposition(None).decode()
    for line in ('passes_total{how="replayed"} 6.0', 'passes_total{how="eager"} 2.0', "graphs 1.0"):
        assert f"devicekit_decode_{line}" in text


def test_a_flush_begins_the_caches_figures_anew(serve: Serve) -> None:
    with serve() as server:
        ids = list(range(2, 60))
        server.generate(ids)
        server.generate(ids)
        assert server.load()["cache_hit_rate"] > 0
        assert server.post("/flush_cache").json()["success"]
        server.get("/health")
        server.eventually(lambda: server.load()["cache_hit_rate"] is None)
        assert server.serving.engine.scheduler.state.requests.cache_figures.epochs == 1
        server.generate(ids)
        assert server.load()["cache_hit_rate"] == 0


DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "devicekit.json"


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(serve: Serve) -> None:
    with serve() as server:
        server.generate(list(range(2, 60)))
        assert server.post("/flush_cache").json()["success"]
        server.generate(list(range(2, 60)), max_new_tokens=3)
        server.get("/health")
        text = server.get("/metrics").text
    there: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        there.setdefault(family.name, set())  # some have samples only when there is something to tell
        for sample in family.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    sampled = "devicekit_weight_update_seconds_bucket"  # after the first update
    there.setdefault(sampled, {"le", "source"})
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 20
    for query in queries:
        [name] = set(re.findall(r"devicekit_\w+", query))
        assert name in there, query
        grouped = {one.strip() for found in re.findall(r"by \(([^)]*)\)", query) for one in found.split(",")}
        assert not there[name] or grouped <= there[name], (query, there[name])
    for one in dashboard["templating"]["list"]:
        assert set(re.findall(r"devicekit_\w+", one.get("definition", ""))) <= set(there)
