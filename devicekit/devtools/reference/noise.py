"""A second version of a checkpoint: the same model with a little noise in its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from devicekit.runners import huggingface as hf
from devicekit.runners.checkpoint import ModelDirectory

_SEED = 20_24
_SHARE = 0.05  # standard deviation of the noise, as a share of each tensor's own


def noisy_copy(directory: ModelDirectory, target: Path) -> Path:
    """Write a copy of ``directory`` to ``target`` with noise added to every floating-point matrix."""
    weights = {file.name for file in directory.weight_files}
    target.mkdir(parents=True)
    for file in directory.path.iterdir():
        if file.is_file() and file.name not in weights:
            shutil.copy2(file, target / file.name)
    generator = torch.Generator().manual_seed(_SEED)
    for file in directory.weight_files:
        with hf.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: _noisy(opened.get_tensor(name), generator) for name in opened.keys()}  # noqa: SIM118
        hf.save_file(tensors, target / file.name, metadata=metadata)
    return target


def _noisy(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.dtype.itemsize < 2:
        return tensor
    wide = tensor.float()
    noise = torch.randn(wide.shape, generator=generator) * (wide.std() * _SHARE)
    return (wide + noise).to(tensor.dtype)
