"""Updating weights in place, again and again: reserved memory stays flat with emptying and climbs without."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.device import Device
from devicekit.devtools.bench.machines import fine_grained
from devicekit.devtools.bench.releases import reserved_over_updates
from devicekit.testing import Simulator

FINE = pytest.mark.parametrize("sim_machine", [fine_grained()], indirect=True)
UPDATES = 12


@FINE
@pytest.mark.parametrize("empty", [True, None])  # None: what happens when nobody says
def test_reserved_memory_stays_where_it_was_after_the_first_update(
    sim_device: Device, checkpoints: tuple[Path, Path], empty: bool | None
) -> None:
    reserved = reserved_over_updates(sim_device, list(checkpoints), UPDATES, empty=empty)
    assert max(reserved) <= 1.1 * reserved[0]


@FINE
def test_without_emptying_it_climbs_until_another_process_gets_no_memory(
    sim_machine: Simulator, sim_device: Device, checkpoints: tuple[Path, Path]
) -> None:
    reserved = reserved_over_updates(sim_device, list(checkpoints), UPDATES, empty=False)
    assert max(reserved) >= 1.5 * reserved[0]
    assert reserved == sorted(reserved)
    wanted = sim_machine.config.capacity - 2_000_000
    with pytest.raises(ValueError, match="are free"):
        sim_machine.other_process(wanted)
    sim_device.empty_cache()
    sim_machine.other_process(wanted).release()
