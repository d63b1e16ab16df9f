"""Shared by all tests: one thread, and small checkpoints made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
