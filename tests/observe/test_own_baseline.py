"""Our own memory behaviour, held against a recorded baseline: bytes and counts, which no machine changes.

To record anew: run this test, and then ``devicekit baseline record RUN -o tests/observe/own_baseline.json`` with
the run that its failure names.
"""

from __future__ import annotations

from pathlib import Path

import torch

from devicekit import Device
from devicekit.memory.kv import KVLayout, KVPool
from devicekit.memory.pages import PageAllocator
from devicekit.observe import Statistics, memory_scope, watch
from devicekit.observe.baseline import Baseline, compare
from devicekit.observe.run import Metric, Run, provenance_of
from devicekit.observe.tolerances import MetricKind
from devicekit.release import ReleasePoint, ReleasePoints

BASELINE = Path(__file__).with_name("own_baseline.json")


def measure(device: Device) -> Run:
    """A KV pool is built, replaced by another of twice the pages, and the cache emptied in between."""
    statistics, points = Statistics(), ReleasePoints(device)
    layout = KVLayout(num_layers=4, num_kv_heads=2, key_dim=64, value_dim=64, dtype=torch.float16)
    values: dict[str, int | None] = {}
    with watch(device, statistics), memory_scope(device) as scope:
        pool = KVPool(device, layout, num_pages=64, page_size=16)
        values["first_pool_bytes"] = scope.current
        del pool
        values["released_bytes"] = points.reach(ReleasePoint.FLUSH).released
        pool = KVPool(device, layout, num_pages=128, page_size=16)
        values["second_pool_bytes"] = scope.current
        del pool
    values |= {
        "left_bytes": scope.current,
        "reserved_bytes": scope.reserved,
        "total_bytes": scope.total,
        "peak_bytes": statistics.overall.bytes.peak,
        "allocations": statistics.overall.count.total,
        "pages": PageAllocator(128).available,
    }
    metrics = {
        name: Metric(float("nan") if value is None else value, MetricKind.EXACT)
        for name, value in values.items()
    }
    return Run(metrics, provenance_of(device))


def test_memory_behaves_as_recorded(sim: Device, tmp_path: Path) -> None:
    run = measure(sim)
    run.write(tmp_path / "run.json")
    report = compare(Baseline.read(BASELINE), run)
    assert report.passed, f"{report}\nrun: {tmp_path / 'run.json'}"
    assert report.advice == ()


def test_one_byte_more_would_be_noticed(sim: Device) -> None:
    worse = measure(sim)
    more = {name: Metric(metric.value + 1, metric.kind) for name, metric in worse.metrics.items()}
    report = compare(Baseline.read(BASELINE), Run(more, worse.provenance))
    assert {one.name for one in report.comparisons if one.failed} == set(more)
