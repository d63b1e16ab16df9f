"""A simulated machine whose allocator is fine-grained, so that small modules show in its bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from torch import nn

from devicekit.testing import KIB, SimConfig, Simulator, simulation

FINE = SimConfig(
    small_limit=4 * KIB,
    small_segment=16 * KIB,
    large_limit=16 * KIB,
    large_segment=16 * KIB,
    segment_rounding=16 * KIB,
)


@pytest.fixture
def sim_machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """The fine-grained machine, with the fields that the test is parametrised with replaced."""
    with simulation(dataclasses.replace(FINE, **getattr(request, "param", {}))) as machine:
        yield machine


@pytest.fixture
def parts() -> dict[str, nn.Module]:
    """Three components of 64 KiB each."""
    return {name: nn.Linear(128, 128, bias=False) for name in ("encoder", "transformer", "decoder")}
