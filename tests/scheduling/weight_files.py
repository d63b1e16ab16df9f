"""Weights of a hash runner in a file, as a runner that loads checkpoints would read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from tests.hash_runner import HashRunner
from tests.scheduling.ranked_faults import Faults


@dataclass
class FileLoader:
    """Reads the weights of a `HashRunner` from a file."""

    runner: HashRunner
    faults: Faults

    def stage_from_disk(self, path: str, within: Sequence[str] = ()) -> FileWeights:
        self.faults.at("stage")
        return FileWeights(self.runner, self.faults, path, load_file(path))


@dataclass
class FileWeights:
    """What was read."""

    runner: HashRunner
    faults: Faults
    path: str
    new: dict[str, torch.Tensor]
    tensors: int = 0
    bytes: int = 0

    def write(self) -> FileWeights:
        self.faults.at("write")
        for name, tensor in self.new.items():
            self.runner.weights[name].data.copy_(tensor)
            self.tensors += 1
            self.bytes += tensor.nbytes
        self.faults.at("written")
        return self

    def settle(self) -> None:
        self.runner.source = self.path  # type: ignore[attr-defined]
