"""What operators see of the pools is every pool there is, each with its own terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.engine import Engine, EngineConfig
from devicekit.server.inventory import count_pools
from examples.checkpoints import write_example_checkpoint


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("gemma2", ["pages", "rows", "window_pages"]),
        ("lfm2", ["pages", "rows", "snapshots", "states"]),
    ],
)
def test_pools_that_only_some_models_have_are_counted_by_themselves(
    tmp_path: Path, architecture: str, names: list[str]
) -> None:
    path = write_example_checkpoint(tmp_path, seed=1, architecture=architecture)
    window_tokens = 192 if architecture == "gemma2" else None
    config = EngineConfig(
        max_running=2, max_batch_tokens=16, kv_tokens=512, window_kv_tokens=window_tokens, state_snapshots=3
    )
    engine = Engine.open(path, "cpu", config=config)
    engine.submit(list(range(40)))
    engine.step()
    pools = count_pools(engine.scheduler)
    assert sorted(pools) == names
    for pool in pools.values():
        assert pool.missing == 0
        assert pool.owned > 0 or pool is pools.get("snapshots")
        assert pool.largest_free_run <= pool.available
    hung = pools.get("window_pages") or pools["snapshots"]
    assert hung.total == (12 if architecture == "gemma2" else 3)
