"""Updating weights, once and again and again: when that empties the cache, and what reserved memory does then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.machines import fine_grained
from bench.releases import reserved_over_updates
from devicekit.device import Device
from devicekit.engine import Engine, EngineConfig
from devicekit.release import ReleasePoint
from devicekit.testing import MIB, Simulator

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


@pytest.mark.parametrize("flush", [True, False])
def test_an_update_empties_only_when_told_to_and_then_once(
    sim_device: Device, checkpoints: tuple[Path, Path], flush: bool
) -> None:
    engine = Engine.open(checkpoints[0], sim_device, config=EngineConfig(max_running=2, kv_tokens=512))
    torch.empty(32 * MIB, dtype=torch.uint8, device=sim_device.torch_device)
    ledger = engine.scheduler.state.releases.ledger
    reply = engine.update_weights_from_disk(checkpoints[1], flush_cache=flush)
    assert reply.success
    assert ledger.query(emptied=True) == []
    engine.update_weights_from_disk(checkpoints[0], flush_cache=flush, empty_cache=True)
    (entry,) = ledger.query(emptied=True)
    assert entry.point is ReleasePoint.WEIGHT_UPDATE
    assert entry.released is not None
    assert entry.released >= 32 * MIB
