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


def test_what_each_of_several_ranks_would_hold_is_shown(
    checkpoints: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--device", "cpu", "--plan", str(checkpoints[0]), "--tensor-parallel", "2"]) == 0
    shown = capsys.readouterr().out
    assert "each of 2 ranks that hold" in shown
    assert "query heads   2 of 4" in shown
    assert "key heads     1 of 2" in shown
    assert "collectives   gloo" in shown
    assert "256 B a token x 16 tokens" in shown  # half of what one process would have
    path = write_example_checkpoint(tmp_path, seed=1, architecture="gpt_oss")
    plan = ["info", "--device", "cpu", "--plan", str(path), "--tensor-parallel", "2"]
    assert main(plan) == 1
    assert "leaves its attention whole" in capsys.readouterr().err
    assert main([*plan, "--expert-parallel"]) == 0
    assert "query heads   4 of 4" in capsys.readouterr().out
