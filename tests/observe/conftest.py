"""The devices that observers are tested on: the host, and a fresh simulated accelerator for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import devicekit
from devicekit.registry import unregister_backend
from devicekit.testing import Simulator
from devicekit.testing.sim_backend import register
from tests.simulated import requested


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A simulated machine of the default configuration, or of the one that the test is parametrised with."""
    with requested(request) as simulator:
        yield simulator


@pytest.fixture
def sim(machine: Simulator) -> Iterator[devicekit.Device]:
    """The second device of a simulated machine that nothing has used yet."""
    register()
    yield devicekit.get_device("sim:1")
    unregister_backend("sim")


@pytest.fixture
def cpu() -> devicekit.Device:
    return devicekit.get_device("cpu")
