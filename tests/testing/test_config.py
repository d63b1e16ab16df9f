"""A machine that cannot exist is refused when it is described."""

from __future__ import annotations

import pytest

from devicekit.testing import MIB, SimConfig


def test_a_copy_costs_latency_and_bandwidth() -> None:
    config = SimConfig(copy_latency=2.0, copy_bandwidth=100.0)
    assert config.copy_seconds(50) == 2.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", 0),
        ("device_count", 0),
        ("rounding", -1),
        ("kernel_seconds", -1.0),
        ("copy_bandwidth", 0.0),
        ("small_limit", 4 * MIB),
        ("small_limit", -5),
        ("large_limit", -1),
        ("large_limit", 64 * MIB),
    ],
)
def test_impossible_sizes_and_times_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        SimConfig(**{field: value})  # type: ignore[arg-type]  # the point


def test_named_variants_differ_from_the_default_in_what_their_names_say() -> None:
    assert SimConfig.rounding_to_2mib().rounding == 2 * MIB
    assert not SimConfig.uncached().caching
    assert SimConfig.synchronous().blocking_launches
    assert SimConfig.slow_driver().driver_alloc_seconds > 0
    assert SimConfig.unified().unified_memory
