"""Pinned host memory: known as such, counted, cached, given back."""

from __future__ import annotations

import random

import pytest
import torch

from devicekit.testing import SimConfig, Simulator
from devicekit.testing.sim_backend import SimBackend

pytestmark = pytest.mark.usefixtures("machine")


def stats() -> tuple[int, int]:
    torch.sim.init()
    found = torch.sim.host_memory_stats()
    return found["active_bytes.current"], found["allocated_bytes.current"]


def test_a_pinned_tensor_and_its_views_say_so_and_others_do_not() -> None:
    plain = torch.arange(8.0)
    pinned = plain.pin_memory()
    assert pinned.is_pinned()
    assert pinned[2:].is_pinned()
    assert pinned.pin_memory() is pinned
    assert not plain.is_pinned()
    assert not torch.ones(2, device="sim").is_pinned()
    assert torch.equal(pinned, plain)


def test_freed_pinned_memory_is_cached_until_the_cache_is_emptied() -> None:
    pinned = torch.zeros(1000, dtype=torch.uint8).pin_memory()
    assert stats() == (1024, 1024)
    del pinned
    assert stats() == (0, 1024)
    again = torch.zeros(1000, dtype=torch.uint8).pin_memory()
    assert stats() == (1024, 1024)
    del again
    torch.sim.host_empty_cache()
    assert stats() == (0, 0)


def test_a_tensor_of_no_bytes_can_be_pinned() -> None:
    assert torch.empty(0).pin_memory().numel() == 0
    assert stats() == (0, 0)


@pytest.mark.parametrize("machine", [SimConfig.unified()], indirect=True)
def test_unified_memory_is_one_for_host_and_devices(machine: Simulator) -> None:
    free, total = torch.sim.mem_get_info(1)
    assert free == total
    pinned = torch.zeros(1 << 20, dtype=torch.uint8).pin_memory()
    on_zero = torch.zeros(1 << 20, dtype=torch.uint8, device="sim:0")
    assert torch.sim.mem_get_info(1)[0] == total - (1 << 20) - (2 << 20)
    assert torch.sim.get_device_properties().is_integrated
    assert pinned.nbytes == on_zero.nbytes


# What is locked are bytes, whichever storage they are part of.


def _hooks() -> SimBackend:
    return SimBackend()


def _locked(hooks: SimBackend, whole: torch.Tensor) -> list[bool]:
    """Of each element, asked by itself."""
    return [hooks.is_pinned(whole[at : at + 1]) for at in range(whole.numel())]


def test_registering_locks_the_bytes_of_its_elements_and_no_others() -> None:
    """Against a model that keeps the locked elements as a set: parts overlap, touch and repeat."""
    hooks, whole, seed = _hooks(), torch.arange(24), 11
    draw = random.Random(seed)
    locked: set[int] = set()
    parts: list[tuple[int, int]] = []
    for step in range(300):
        begin = draw.randrange(24)
        end = draw.randrange(begin, 25)
        part, told = whole[begin:end], f"seed {seed}, step {step}: {begin} to {end}, of {sorted(parts)}"
        inside = set(range(begin, end))
        if draw.random() < 0.5:
            if inside and not inside & locked:
                hooks.register_host_memory(part)
                parts.append((begin, end))
                locked |= inside
            else:
                with pytest.raises(ValueError):
                    hooks.register_host_memory(part)
        elif (begin, end) in parts:
            hooks.unregister_host_memory(part.clone().set_(part))
            parts.remove((begin, end))
            locked -= inside
        else:
            with pytest.raises(ValueError):
                hooks.unregister_host_memory(part)
        assert _locked(hooks, whole) == [at in locked for at in range(24)], told
        assert hooks.is_pinned(part) == (bool(inside) and inside <= locked), told


def test_a_part_far_from_what_is_registered_is_not_locked_and_can_be() -> None:
    hooks, whole = _hooks(), torch.empty(64 << 20, dtype=torch.uint8)
    near, far = whole[:1024], whole[32 << 20 :]
    hooks.register_host_memory(near)
    assert hooks.is_pinned(near[10:])
    assert not hooks.is_pinned(far)
    assert not hooks.is_pinned(whole)
    assert hooks.pin_memory(far[:8]).data_ptr() != far.data_ptr()
    hooks.register_host_memory(far)
    assert hooks.is_pinned(far)


def test_pooled_memory_is_locked_under_every_tensor_on_it_and_not_beyond() -> None:
    hooks = _hooks()
    pinned = torch.arange(1000).pin_memory()
    other = torch.from_numpy(pinned[500:].numpy())  # a storage of its own, over the same bytes
    assert hooks.is_pinned(other)
    assert hooks.is_pinned(pinned.view(10, 100).t()[3:])
    for part in (pinned, pinned[10:20], other):
        with pytest.raises(ValueError, match="already"):
            hooks.register_host_memory(part)
        with pytest.raises(ValueError, match="not registered"):
            hooks.unregister_host_memory(part)


def test_what_is_no_memory_of_the_host_is_neither_locked_nor_registered() -> None:
    hooks = _hooks()
    for tensor in (torch.empty(0), torch.arange(4)[2:2], torch.ones(2, device="sim")):
        assert hooks.is_pinned(tensor) is False
        with pytest.raises(ValueError):
            hooks.register_host_memory(tensor)
        with pytest.raises(ValueError):
            hooks.unregister_host_memory(tensor)


def test_registered_memory_is_not_the_pools() -> None:
    before = stats()
    _hooks().register_host_memory(torch.arange(1000))
    assert stats() == before
