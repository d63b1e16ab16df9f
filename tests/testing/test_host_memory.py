"""Pinned host memory: known as such, counted, cached, given back."""

from __future__ import annotations

import pytest
import torch

from devicekit.testing import SimConfig, Simulator

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
