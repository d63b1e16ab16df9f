"""A log of allocations can be read back and replayed against an allocator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from devicekit import Device
from devicekit.contract.errors import ConfigurationError
from devicekit.observe import AllocationLog, read_log, replay, watch
from devicekit.observe.allocation_log import Action
from devicekit.testing import MIB, SimConfig


@pytest.fixture(params=["log.csv", "log.jsonl"])
def path(request: pytest.FixtureRequest, tmp_path: Path, cpu: Device) -> Path:
    """Three allocations, of which two overlap."""
    found = tmp_path / str(request.param)
    with AllocationLog(found) as log, watch(cpu, log):
        first = torch.empty(2 * MIB, dtype=torch.uint8)
        second = torch.zeros(4 * MIB, dtype=torch.uint8)
        del first
        third = second.clone()
        del second, third
    return found


def test_each_free_names_its_allocation(path: Path) -> None:
    lines = list(read_log(path))
    assert [(line.action, line.bytes // MIB) for line in lines] == [
        (Action.ALLOCATE, 2),
        (Action.ALLOCATE, 4),
        (Action.FREE, 2),
        (Action.ALLOCATE, 4),
        (Action.FREE, 4),
        (Action.FREE, 4),
    ]
    assert lines[2].number == lines[0].number
    assert [line.operator for line in lines[:2]] == ["aten.empty.memory_format", "aten.zeros.default"]
    assert [line.seconds for line in lines] == sorted(line.seconds for line in lines)


def test_a_replay_tells_what_another_allocator_makes_of_it(path: Path, sim: Device) -> None:
    report = replay(path, sim)
    assert (report.allocations, report.failed) == (3, 0)
    assert (report.requested_peak, report.peak_allocated) == (8 * MIB, 8 * MIB)
    assert report.reserved == 20 * MIB
    assert sim.memory_stats().allocated == 0


@pytest.mark.parametrize("machine", [SimConfig(capacity=6 * MIB, large_segment=20 * MIB)], indirect=True)
def test_a_replay_counts_what_does_not_fit(path: Path, sim: Device) -> None:
    report = replay(path, sim)
    assert report.failed == 3
    assert report.requested_peak == 0


def test_replay_on_a_backend_without_statistics_leaves_them_unknown(path: Path, cpu: Device) -> None:
    report = replay(path, cpu)
    assert report.requested_peak == 8 * MIB
    assert (report.reserved, report.peak_allocated) == (None, None)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"seconds": 1}\n')
    with pytest.raises(ConfigurationError, match=r"Entry 1 .*other\.jsonl"):
        list(read_log(path))
