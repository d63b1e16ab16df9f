from __future__ import annotations

import pytest
import torch

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.kv import KVLayout
from devicekit.memory.sizing import NotEnoughMemory, plan_kv

LAYOUT = KVLayout(num_layers=2, num_kv_heads=3, key_dim=8, value_dim=4, dtype=torch.float16)
TOKEN = 2 * 3 * (8 + 4) * 2  # layers x heads x (key + value) x bytes
SETTINGS = {"page_size": 16, "max_running": 7, "max_positions": 100}
TABLE = (7 + 1) * 7 * 4  # rows and the padding row, x pages of 16 in 100 positions, x int32


def test_the_terms_add_up_to_what_is_available():
    plan = plan_kv(1_000_000, LAYOUT, fraction=0.5, reserve_bytes=1000, **SETTINGS)
    assert plan.bytes_per_token == TOKEN
    assert plan.usable_bytes == 500_000 - 1000
    assert plan.table_bytes == TABLE
    assert plan.pool_bytes == (plan.num_pages + 1) * 16 * TOKEN
    assert plan.table_bytes + plan.pool_bytes + plan.unused_bytes == plan.usable_bytes
    assert 0 <= plan.unused_bytes < plan.page_bytes
    assert plan.num_tokens == plan.num_pages * 16


def test_the_smallest_pool_is_one_page_and_one_byte_less_is_refused():
    needed = TABLE + 2 * 16 * TOKEN  # the padding page and one more
    assert plan_kv(needed, LAYOUT, fraction=1.0, **SETTINGS).num_pages == 1
    with pytest.raises(NotEnoughMemory) as refusal:
        plan_kv(needed - 1, LAYOUT, fraction=1.0, **SETTINGS)
    assert (refusal.value.needed_bytes, refusal.value.usable_bytes) == (needed, needed - 1)


@pytest.mark.parametrize("pages", [1, 2, 9])
def test_there_are_as_many_pages_as_fit_beside_the_table_and_what_is_left_is_less_than_one(pages):
    page = 16 * TOKEN
    for over in (0, 1, page - 1):
        plan = plan_kv(TABLE + (1 + pages) * page + over, LAYOUT, fraction=1.0, **SETTINGS)
        assert (plan.num_pages, plan.unused_bytes) == (pages, over)
        most = plan_kv(TABLE + 11 * page + over, LAYOUT, fraction=1.0, max_tokens=16 * pages, **SETTINGS)
        assert (most.num_pages, most.unused_bytes) == (pages, (10 - pages) * page + over)


def test_a_reserve_larger_than_memory_leaves_nothing():
    with pytest.raises(NotEnoughMemory) as refusal:
        plan_kv(1000, LAYOUT, reserve_bytes=10**9, **SETTINGS)
    assert refusal.value.usable_bytes == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"fraction": 0.0},
        {"fraction": 1.5},
        {"page_size": 0},
        {"max_running": 0},
        {"max_positions": 0},
        {"reserve_bytes": -1},
        {"min_tokens": 0},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigurationError, match="fraction" if "fraction" in wrong else next(iter(wrong))):
        plan_kv(10**9, LAYOUT, **{**SETTINGS, **wrong})
