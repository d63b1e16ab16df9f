"""A fresh simulated machine for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devicekit.testing import SimConfig, Simulator, simulation


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A machine of the default configuration, or of the one that the test is parametrised with."""
    config = getattr(request, "param", None)
    assert config is None or isinstance(config, SimConfig)
    with simulation(config) as simulator:
        yield simulator
