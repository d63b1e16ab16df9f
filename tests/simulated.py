"""A simulated machine for a fixture that tests may parametrise with a configuration."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from devicekit.testing import SimConfig, Simulator, simulation


def requested(request: pytest.FixtureRequest) -> AbstractContextManager[Simulator]:
    """A fresh machine: of the configuration that the test passes to the fixture, else of the default one."""
    config = getattr(request, "param", None)
    assert config is None or isinstance(config, SimConfig)
    return simulation(config)
