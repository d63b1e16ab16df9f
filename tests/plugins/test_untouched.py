"""Observers and queries leave every vendor's driver as it was, before its first use and after."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import pytest
from packaging.specifiers import SpecifierSet

import devicekit
from devicekit import Device
from devicekit.observe import memory_scope
from tests.doubles.driver import MIB, Driver
from tests.observe.actions import INITIALISING, OBSERVERS, QUERIES
from tests.plugins.support import Bench, manifest_of


@pytest.fixture
def device(bench: Bench) -> Iterator[Device]:
    """The second card of a vendor's double, opened through the registry."""
    # The double stands for a vendor's package that is not installed, nor is its device type known to torch.
    manifest = dataclasses.replace(
        manifest_of(bench.name), name="double", device_type="meta", requires=(), torch=SpecifierSet()
    )
    devicekit.register_backend(lambda: bench.backend, manifest)
    try:
        yield devicekit.get_device("double:1")
    finally:
        devicekit.unregister_backend("double")


def _state(driver: Driver) -> dict[str, object]:
    kept = {name: value for name, value in vars(driver).items() if "queues" not in name}
    return copy.deepcopy(kept) | {"queues": [(one.until, one.capturing) for one in driver.queues]}


def test_before_first_use_nothing_is_initialised(bench: Bench, device: Device) -> None:
    before = _state(bench.driver)
    assert before["initialised"] is False
    for name, action in {**OBSERVERS, **QUERIES}.items():
        action(device)
        assert _state(bench.driver) == before, name


def test_in_use_nothing_is_changed(bench: Bench, device: Device) -> None:
    driver = bench.driver
    kept = driver.allocate(1, 3 * MIB)
    passing = driver.allocate(1, 9 * MIB)
    assert kept is not None
    assert passing is not None
    driver.cards[1].give_back(passing)  # a peak above what is allocated, and a cache to empty
    driver.submit(5.0)
    before = _state(driver)
    stats = device.memory_stats()
    assert stats.peak_allocated != stats.allocated
    for name, action in {**OBSERVERS, **QUERIES, **INITIALISING}.items():
        action(device)
        assert _state(driver) == before, name
    assert device.memory_stats() == stats


def test_a_scope_counts_on_every_vendor(bench: Bench, device: Device) -> None:
    bench.driver.allocate(1, MIB)
    with memory_scope(device) as scope:
        bench.driver.allocate(1, 2 * MIB)
        bench.driver.allocate(0, 4 * MIB)
    assert scope.current is not None
    assert 2 * MIB <= scope.current <= 2 * MIB + 1024  # what is asked for, and the vendor's rounding
    assert scope.peak == scope.current
