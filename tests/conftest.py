"""Shared by all tests: one thread, and small checkpoints made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from devicekit.device import Device, get_device
from devicekit.registry import unregister_backend
from devicekit.testing import SimConfig, Simulator, simulation

torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of one small Llama-style model."""
    from devicekit.runners.example import write_example_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    return (
        write_example_checkpoint(folder / "v1", seed=1),
        write_example_checkpoint(folder / "v2", seed=2),
    )


@pytest.fixture
def sim_machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A fresh simulated machine, of the configuration that the test is parametrised with, if any."""
    config = getattr(request, "param", None)
    assert config is None or isinstance(config, SimConfig)
    with simulation(config) as machine:
        yield machine


@pytest.fixture
def sim_device(sim_machine: Simulator) -> Iterator[Device]:
    """Device 0 of that machine, as engine code holds it."""
    from devicekit.testing.sim_backend import register

    register()
    yield get_device("sim")
    unregister_backend("sim")
