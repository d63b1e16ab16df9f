"""`devicekit info --plan` on a device where memory is short."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.cli import main
from devicekit.registry import unregister_backend
from devicekit.testing import SimConfig, simulation
from devicekit.testing.sim_backend import register
from examples.checkpoints import write_example_checkpoint


def test_the_pool_of_layers_with_a_window_is_shown_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_example_checkpoint(tmp_path, seed=1, architecture="gemma2")
    with simulation(SimConfig(capacity=12 << 20)):
        register()
        status = main(["info", "--device", "sim", "--plan", str(path)])
        unregister_backend("sim")
    shown = capsys.readouterr().out
    assert status == 0
    assert "512 B a token x 16 tokens = 8.0 KiB a page" in shown  # of the layer that sees everything
    assert "with 192 pages of 8.0 KiB for layers with a window" in shown
