from __future__ import annotations

import pytest
import torch

import devicekit
from devicekit.contract.errors import ConfigurationError
from devicekit.engine import EngineConfig, plan_pool
from devicekit.memory.kv import KVLayout, KVPool
from devicekit.memory.paired_sizing import least_window_pages
from devicekit.memory.sizing import KVPlan
from devicekit.memory.state import StateLayout, StateTensor
from devicekit.scheduling.batch import ModelLimits

HALF = 2 * (8 + 8) * 2  # bytes of a token in one layer
WINDOW = 32
LAYOUT = KVLayout(4, 2, 8, 8, torch.float16, windows=(WINDOW, None, WINDOW, WINDOW))
LIMITS = ModelLimits(100, 4000, frozenset(), partial_window=WINDOW)


def plan(available: int | None, layout: KVLayout = LAYOUT, **settings: int | None) -> KVPlan:
    config = EngineConfig(
        **{"max_running": 4, "memory_fraction": 1.0, "max_batch_tokens": 64, **settings}  # type: ignore[arg-type]
    )
    return plan_pool(layout, LIMITS, available, config)


def test_what_windowed_layers_do_not_need_becomes_pages_of_the_others() -> None:
    together = plan(400_000, window_kv_tokens=0)
    made = plan(400_000)
    assert together.window_pages is None
    assert made.window_pages is not None
    assert made.num_pages > 2 * together.num_pages
    assert (made.page_bytes, made.window_page_bytes) == (16 * HALF, 3 * 16 * HALF)
    assert made.pool_bytes == (made.num_pages + 1) * 16 * HALF + (made.window_pages + 1) * 3 * 16 * HALF
    assert made.usable_bytes is not None
    assert made.unused_bytes is not None
    assert made.table_bytes + made.pool_bytes + made.unused_bytes == made.usable_bytes
    assert 0 <= made.unused_bytes < made.page_bytes


def test_the_buffers_take_what_the_plan_says() -> None:
    made = plan(400_000)
    pool = KVPool(
        devicekit.get_device("cpu"), LAYOUT, made.num_pages, made.page_size, window_pages=made.window_pages
    )
    assert pool.nbytes == made.pool_bytes
    buffers = [pool.key(layer) for layer in range(4)] + [pool.value(layer) for layer in range(4)]
    assert sum(buffer.nbytes for buffer in buffers) == made.pool_bytes
    assert pool.release() == made.pool_bytes
    assert pool.resume() == made.pool_bytes
    with pytest.raises(ValueError, match="pages of their own"):
        pool.page_rows()


def test_where_all_that_may_be_used_fits_there_is_one_pool_unless_two_are_wanted() -> None:
    assert plan(10**9).window_pages is None
    assert plan(None, kv_tokens=4096).window_pages is None
    assert plan(10**9, window_kv_tokens=1024).window_pages == 64
    assert plan(None, kv_tokens=4096, window_kv_tokens=1024).window_pages == 64
    assert plan(None, kv_tokens=512, window_kv_tokens=1024).window_pages is None, "it would be no smaller"


def test_the_fewest_window_pages_hold_a_chunk_and_two_windows() -> None:
    least = least_window_pages(WINDOW, 16, 64) * 16
    assert plan(None, kv_tokens=4096, window_kv_tokens=least).window_pages == least // 16
    with pytest.raises(ConfigurationError, match=f"need {least} tokens"):
        plan(None, kv_tokens=4096, window_kv_tokens=least - 16)


def test_what_cannot_be_had_is_refused() -> None:
    everywhere = KVLayout(2, 2, 8, 8, torch.float16, windows=(WINDOW, WINDOW))
    with pytest.raises(ConfigurationError, match="no layers with a window beside"):
        plan(10**6, everywhere, window_kv_tokens=512)
    with pytest.raises(ValueError, match="window_pages=3 need layers"):
        KVPool(devicekit.get_device("cpu"), everywhere, 9, 16, window_pages=3)
    with pytest.raises(ConfigurationError, match="host tier copies whole pages"):
        plan(10**6, window_kv_tokens=512, host_kv_tokens=512)
    with pytest.raises(ConfigurationError, match="window_kv_tokens"):
        plan(10**6, window_kv_tokens=-1)
    states = StateLayout((StateTensor(0, "conv", (4,), torch.float32),))
    with pytest.raises(ConfigurationError, match="recurrent"):
        plan_pool(LAYOUT, LIMITS, 10**6, EngineConfig(window_kv_tokens=512), states=states)


def test_a_host_tier_does_without() -> None:
    assert plan(400_000, host_kv_tokens=512).window_pages is None
