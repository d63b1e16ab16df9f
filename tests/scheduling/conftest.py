from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from devicekit.device import Device, get_device
from tests.scheduling.processes import Worlds
from tests.scheduling.rig import Rig, make_rig

MakeRig = Callable[..., Rig]


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Processes of 2 or 3 ranks, started when they are first asked for."""
    worlds = Worlds()
    yield worlds
    worlds.close()


@pytest.fixture
def device() -> Device:
    return get_device("cpu")


@pytest.fixture
def new_rig(device: Device) -> MakeRig:
    """Build a rig of other sizes than `rig` has."""
    return lambda **sizes: make_rig(device, **sizes)


@pytest.fixture
def rig(device: Device) -> Iterator[Rig]:
    """A rig of 64 pages of 4 tokens, audited at the end."""
    rig = make_rig(device)
    yield rig
    rig.check()
