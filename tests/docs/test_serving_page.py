"""What docs/serving.md says of metrics, the log and the port is what a server shows."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import CHECKOUT

PAGE = CHECKOUT / "docs" / "serving.md"
UNITS = {"_seconds": "seconds", "_bytes": "bytes", "_tokens": "tokens"}  # by what a name ends with


def rows() -> dict[str, list[str]]:
    """Type, unit, labels and text of each metric on the page."""
    found = re.findall(r"^\| `(devicekit_\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in found}


def exposed(text: str) -> dict[str, tuple[str, str]]:
    """Type and text of each metric that a server shows, without the times at which counters were made."""
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return {name: (types[name], helps[name]) for name in types if not name.endswith("_created")}


@pytest.mark.parametrize("served", [PAGE], ids=lambda page: page.name, indirect=True)
def test_metrics_log_and_port_are_what_the_page_says(served: str, scratch: Path) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{served}", trust_env=False, timeout=60) as client:
        generated = client.post("/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 2}})
        assert generated.status_code == 200
        update = {"model_path": "models/v2", "weight_version": "v2"}
        assert client.post("/update_weights_from_disk", json=update).status_code == 200
        transaction = {"settle": "in_place", "model_path": "models/v1", "weight_version": "v3"}
        assert client.post("/transaction", json={**transaction, "flush_cache": False}).status_code == 200
        refused = client.post("/update_weights_from_disk", json={"model_path": "models"})
        assert refused.status_code == 400
        assert client.get("/server_info").json()["port"] == int(served)
        text = client.get("/metrics").text

    table, shown = rows(), exposed(text)
    assert shown.keys() - table.keys() == set()
    # Unknown until something was looked up.
    assert table.keys() - shown.keys() <= {"devicekit_cache_hit_rate"}
    for name in shown:
        assert (table[name][0], table[name][3]) == shown[name]
    for name, (_, unit, labels, _) in table.items():
        base = name.removesuffix("_total")
        for ending, expected in UNITS.items():
            assert not base.endswith(ending) or unit == expected, name
        for sample in re.findall(rf"^{name}(?:_bucket|_sum|_count)?{{(.*)}} ", text, re.MULTILINE):
            assert set(re.findall(r"(\w+)=\"", sample)) - {"le"} == set(re.findall(r"`(\w+)`", labels)), name

    log = (scratch / "serve.log").read_text()
    assert re.search(r"INFO +devicekit \S+ serves .*models/v1 on cpu:0, backend 'cpu'", log)
    assert re.search(
        r"INFO +KV pool: \d+ pages of 16 tokens, [\d.]+ [KM]iB; available before: [\d.]+ [MGT]iB;", log
    )
    assert re.search(r"INFO +UpdateWeightsFromDisk done in \S+ s", log)
    assert re.search(r"INFO +Transaction done in \S+ s: Weights updated to version 'v3'", log)
    assert re.search(r"WARNING +UpdateWeightsFromDisk (?:failed|was refused)", log)
