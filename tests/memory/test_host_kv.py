from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from devicekit.contract.errors import ConfigurationError
from devicekit.device import get_device
from devicekit.memory.errors import MemoryReleased
from devicekit.memory.host_kv import HostKVPool
from devicekit.memory.kv import KVLayout, KVPool


def ids(*pages: int) -> bytes:
    return np.array(pages, np.int32).tobytes()


def pools(dtype: torch.dtype = torch.bfloat16) -> tuple[KVPool, HostKVPool]:
    device = get_device("cpu")
    layout = KVLayout(num_layers=2, num_kv_heads=3, key_dim=4, value_dim=2, dtype=dtype)
    pool = KVPool(device, layout, num_pages=9, page_size=2)
    for rows in pool.page_rows():
        rows.random_(0, 120)
    return pool, HostKVPool(device, pool, num_pages=6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_pages_come_back_as_they_went_wherever_they_lay(dtype: torch.dtype) -> None:
    pool, host = pools(dtype)
    before = [rows.clone() for rows in pool.page_rows()]
    host.store(ids(7, 2, 5, 1), ids(3, 6, 2, 1), "a")
    host.load(ids(1, 2, 3, 6), ids(8, 9, 4, 3), "a")
    for rows, old in zip(pool.page_rows(), before, strict=True):
        assert torch.equal(rows[[8, 9, 4, 3]], old[[1, 5, 7, 2]])
        assert torch.equal(rows[[0, 1, 2, 5, 6, 7]], old[[0, 1, 2, 5, 6, 7]]), "nothing else was touched"


def test_any_pages_come_back_from_any_others() -> None:
    """Runs of pages that lie behind each other are copied in one go, wherever in the pool they end."""
    chance = random.Random(3)
    for _ in range(60):
        pool, host = pools(torch.float32)
        before = [rows.clone() for rows in pool.page_rows()]
        count = chance.randint(1, 6)
        source, kept = chance.sample(range(1, 10), count), chance.sample(range(1, 7), count)
        host.store(ids(*source), ids(*kept), "a")
        order = chance.sample(range(count), count)
        back = chance.sample(range(1, 10), count)
        host.load(ids(*(kept[at] for at in order)), ids(*back), "a")
        for rows, old in zip(pool.page_rows(), before, strict=True):
            assert torch.equal(rows[back], old[[source[at] for at in order]]), (source, kept, order, back)


def test_page_rows_are_the_pools_own_memory() -> None:
    pool, _ = pools()
    pool.key(1)[4 * 2] = 1.5
    assert pool.page_rows()[1][4].view(torch.bfloat16)[:12].tolist() == [1.5] * 12


def test_without_overlap_a_copy_is_done_when_it_was_begun() -> None:
    _, host = pools()
    copy = host.store(ids(1, 2), ids(1, 2), "me")
    assert copy.done()
    copy.wait()
    assert (copy.owner, copy.pages) == ("me", 2)


def test_bytes_are_counted_and_released() -> None:
    pool, host = pools()
    assert host.nbytes == 7 * 2 * pool.layout.bytes_per_token
    assert host.release() == host.nbytes
    with pytest.raises(MemoryReleased):
        host.store(ids(1), ids(1), "a")
    assert host.resume() == host.nbytes
    host.store(ids(1), ids(1), "a")


def test_a_pool_without_pages_and_uneven_copies_are_refused() -> None:
    pool, host = pools()
    with pytest.raises(ConfigurationError):
        HostKVPool(pool.device, pool, 0)
    with pytest.raises(ValueError, match="2 device pages"):
        host.store(ids(1, 2), ids(1), "a")
