"""What each point does when nobody set anything: the table that users read."""

from __future__ import annotations

import pytest
import torch

from devicekit.device import Device
from devicekit.release import ReleasePoint, ReleasePoints
from devicekit.testing import MIB, MockClock

# point, emptied when the request does not say, when it says yes, when it says no
TABLE = [
    (ReleasePoint.FLUSH, True, True, False),
    (ReleasePoint.WEIGHT_UPDATE, False, True, False),
    (ReleasePoint.CONTINUE, True, True, False),
    (ReleasePoint.IDLE, False, False, False),
    (ReleasePoint.OUT_OF_MEMORY, True, True, True),
    (ReleasePoint.REQUEST_FAILED, False, True, False),
    (ReleasePoint.COMPONENT, False, True, False),
    (ReleasePoint.MEMORY_OCCUPATION, True, True, True),
    (ReleasePoint.AVAILABLE_MEMORY, False, True, False),
]


@pytest.mark.parametrize(("point", "unsaid", "yes", "no"), TABLE)
def test_default(sim_device: Device, point: ReleasePoint, unsaid: bool, yes: bool, no: bool) -> None:
    clock = MockClock()
    releases = ReleasePoints(sim_device, clock=clock)
    clock.advance(1e6)  # however long nothing happened
    for requested, emptied in ((None, unsaid), (True, yes), (False, no)):
        torch.empty(4 * MIB, dtype=torch.uint8, device=sim_device.torch_device)
        assert bool(releases.reach(point, requested)) is emptied
        assert sim_device.memory_stats().reserved == (0 if emptied else 20 * MIB)
        sim_device.empty_cache()


def test_the_table_has_every_point() -> None:
    assert {row[0] for row in TABLE} == set(ReleasePoint)
