from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from devicekit.memory.kv import KVLayout, KVPool

HOST = SimpleNamespace(torch_device=torch.device("cpu"))


def layout(dtype: torch.dtype = torch.float32, *, layers: int = 2) -> KVLayout:
    return KVLayout(num_layers=layers, num_kv_heads=2, key_dim=4, value_dim=3, dtype=dtype)


def rows(count: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 2, dim, generator=torch.Generator().manual_seed(count * dim)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_read_and_nothing_else_changes(dtype):
    pool = KVPool(HOST, layout(dtype), num_pages=4, page_size=4)
    for layer in range(2):
        pool.key(layer).fill_(9)
        pool.value(layer).fill_(9)
    slots = torch.tensor([17, 4, 11])
    key, value = rows(3, 4, dtype), rows(3, 3, dtype)
    pool.write(1, slots, key, value)
    read_key, read_value = pool.read(1, slots)
    assert torch.equal(read_key, key)
    assert torch.equal(read_value, value)
    others = [slot for slot in range(pool.num_slots) if slot not in slots]
    assert (pool.key(1)[others] == 9).all()
    assert (pool.value(1)[others] == 9).all()
    assert (pool.key(0) == 9).all()
    assert (pool.value(0) == 9).all()


def test_reading_takes_slots_of_any_shape():
    pool = KVPool(HOST, layout(), num_pages=4, page_size=4)
    pool.write(0, torch.arange(4, 10), rows(6, 4), rows(6, 3))
    key, value = pool.read(0, torch.tensor([[9, 4, 5], [6, 6, 0]]))
    assert key.shape == (2, 3, 2, 4)
    assert value.shape == (2, 3, 2, 3)
    assert torch.equal(key[0], rows(6, 4)[[5, 0, 1]])
    assert torch.equal(value[1, :2], rows(6, 3)[[2, 2]])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_round_to_nearest_and_saturate(dtype):
    pool = KVPool(HOST, layout(dtype), num_pages=2, page_size=4)
    key = rows(2, 4)
    key[0, 0, 0], key[1, 1, 3] = 1e9, -1e9
    pool.write(0, torch.tensor([5, 6]), key, rows(2, 3))
    stored, _ = pool.read(0, torch.tensor([5, 6]))
    limit = torch.finfo(dtype).max
    assert stored.dtype == dtype
    assert torch.equal(stored.float(), key.clamp(-limit, limit).to(dtype).float())
    assert stored[0, 0, 0].float() == limit
    assert pool.key(0).dtype == dtype


def test_the_padding_slot_is_zero_from_the_start():
    pool = KVPool(HOST, layout(), num_pages=1, page_size=4)
    key, value = pool.read(0, torch.tensor([0]))
    assert not key.any()
    assert not value.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_bytes_are_those_of_the_tensors(dtype):
    pool = KVPool(HOST, layout(dtype), num_pages=5, page_size=8)
    tensors = [pool.key(i) for i in range(2)] + [pool.value(i) for i in range(2)]
    assert pool.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert pool.nbytes == 6 * 8 * pool.layout.bytes_per_token


@pytest.mark.parametrize("shape", [{"num_pages": 0, "page_size": 4}, {"num_pages": 4, "page_size": 0}])
def test_a_pool_without_pages_is_refused(shape):
    with pytest.raises(ValueError, match=next(name for name, size in shape.items() if not size)):
        KVPool(HOST, layout(), **shape)


def test_a_layout_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        layout(layers=0)
    with pytest.raises(ValueError, match="2 windows"):
        KVLayout(3, 1, 1, 1, torch.float32, windows=(None, 4))
