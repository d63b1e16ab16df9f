"""A memory scope says what the allocator did, and ``None`` where that cannot be told."""

from __future__ import annotations

import torch

from devicekit import Device
from devicekit.observe import memory_scope
from devicekit.testing import MIB


def _take(sim: Device, size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=sim.torch_device)


def test_current_peak_and_total_nest(sim: Device) -> None:
    with memory_scope(sim) as outer:
        held = _take(sim, 2 * MIB)
        with memory_scope(sim) as inner:
            for _ in range(3):
                _take(sim, MIB)
            assert inner.current == 0
        second = _take(sim, 4 * MIB)
    assert (inner.current, inner.peak, inner.total) == (0, MIB, 3 * MIB)
    assert (outer.current, outer.peak, outer.total) == (6 * MIB, 6 * MIB, 9 * MIB)
    assert outer.reserved == 20 * MIB + 2 * MIB
    del held, second
    assert outer.current == 6 * MIB  # as it was at the end of the block


def test_a_peak_hidden_by_an_older_one_is_unknown_but_bounded(sim: Device) -> None:
    _take(sim, 8 * MIB)
    with memory_scope(sim) as scope:
        _take(sim, MIB)
    assert scope.peak is None
    assert scope.peak_bounds == (0, 8 * MIB)
    sim.reset_peak_memory_stats()
    with memory_scope(sim) as scope:
        _take(sim, MIB)
    assert scope.peak == MIB


def test_a_reset_inside_leaves_a_lower_bound(sim: Device) -> None:
    _take(sim, 8 * MIB)
    with memory_scope(sim) as scope:
        sim.reset_peak_memory_stats()
        _take(sim, MIB)
    assert scope.peak is None
    assert scope.peak_bounds == (MIB, None)


def test_reading_before_first_use_initialises_nothing_and_counts_from_zero(sim: Device) -> None:
    with memory_scope(sim) as scope:
        assert scope.current == 0
        assert not torch.sim.is_initialized()
        held = _take(sim, MIB)
    assert (scope.current, scope.peak, scope.total) == (held.nbytes, MIB, MIB)


def test_a_backend_that_does_not_count_is_unknown_not_zero(cpu: Device) -> None:
    with memory_scope(cpu) as scope:
        torch.empty(MIB)
    assert (scope.current, scope.peak, scope.total, scope.reserved) == (None, None, None, None)
    assert scope.peak_bounds == (None, None)
