"""``devicekit replay`` on a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import devicekit
from devicekit.cli import main
from devicekit.observe import AllocationLog, watch
from devicekit.testing import KIB, MIB, SimConfig, simulation
from devicekit.testing.sim_backend import register


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    with AllocationLog(path) as log, watch(devicekit.get_device("cpu"), log):
        held = [torch.empty(3 * MIB, dtype=torch.uint8) for _ in range(2)]
        del held
    return path


def test_a_log_of_one_device_is_replayed_on_another(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with simulation():
        register()
        try:
            assert main(["replay", str(log), "--device", "sim:1"]) == 0
            shown = capsys.readouterr().out
            assert shown.startswith("2 allocations on sim:1, 0 failed")
            assert "peak allocated  6.0 MiB" in shown
            assert "reserved        20.0 MiB more" in shown
        finally:
            devicekit.unregister_backend("sim")


def test_what_does_not_fit_is_told_by_the_exit_status(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with simulation(SimConfig.uncached()) as machine:
        register()
        try:
            with machine.other_process(machine.config.capacity - 4 * MIB + 64 * KIB):
                assert main(["replay", str(log), "--device", "sim", "--json"]) == 1
            report = json.loads(capsys.readouterr().out)
            assert (report["failed"], report["requested_peak"]) == (1, 3 * MIB)
        finally:
            devicekit.unregister_backend("sim")
