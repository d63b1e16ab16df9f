"""Runs the model over sequences: inputs, the cache, graphs, and the next tokens."""

from __future__ import annotations

import torch

import devicekit

from .block_manager import BlockManager
from .config import EngineConfig
from .graphs import DecodeGraphs
from .memory import begin_measuring, blocks_that_fit, log_memory
from .model import Inputs, Model
from .sequences import Sequence


class ModelRunner:
    """A model on one device of a machine."""

    def __init__(self, config: EngineConfig, rank: int = 0) -> None:
        devicekit.make_current(rank)
        torch.manual_seed(config.seed)
        devicekit.current_device().manual_seed_all(config.seed)
        self.config = config
        self.model = Model(config).to(devicekit.current_device().torch_device).eval()
        self._cache = self._allocate(config.blocks_per_sequence + 1)
        self._measure()
        num_blocks = blocks_that_fit(config, self._block_bytes())
        self._cache = self._allocate(num_blocks)
        self.blocks = BlockManager(num_blocks, config.block_size)
        self._graphs: DecodeGraphs | None = None
        if config.graphs and devicekit.current_device().supports("create_graph"):
            self._graphs = DecodeGraphs(self.model, config)
            with torch.inference_mode():
                self._graphs.capture()
        log_memory(f"{num_blocks} blocks")

    @torch.inference_mode()
    def run(self, sequences: list[Sequence]) -> list[int]:
        """Compute what is new of each sequence, and choose its next token."""
        counts = [len(one.tokens) - one.computed for one in sequences]
        inputs = self._inputs(sequences)
        if self._graphs is not None and max(counts) == 1:
            scores = self._graphs.run(inputs)
        else:
            ends = torch.tensor(counts).cumsum(0) - 1
            scores = self.model(inputs)[ends.to(devicekit.current_device().torch_device)]
        for one, count in zip(sequences, counts, strict=True):
            one.computed += count
        chosen: list[int] = scores.argmax(-1).tolist()
        return chosen

    def _inputs(self, sequences: list[Sequence]) -> Inputs:
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        for one in sequences:
            table = one.blocks + [0] * (self.config.blocks_per_sequence - len(one.blocks))
            for position in range(one.computed, len(one.tokens)):
                tokens.append(one.tokens[position])
                positions.append(position)
                slots.append(self.blocks.slot(one, position))
                tables.append(table)
        return Inputs(_sent(tokens), _sent(positions), _sent(slots), _sent(tables))

    @torch.inference_mode()
    def _measure(self) -> None:
        """The largest pass there will be, over a cache of one sequence."""
        begin_measuring()
        count = self.config.max_running * self.config.max_length
        zeros = torch.zeros(count, dtype=torch.int64, device=devicekit.current_device().torch_device.type)
        tables = torch.zeros(
            count,
            self.config.blocks_per_sequence,
            dtype=torch.int64,
            device=devicekit.current_device().torch_device.type,
        )
        self.model(Inputs(zeros, zeros, zeros, tables))

    def _allocate(self, num_blocks: int) -> torch.Tensor:
        config = self.config
        shape = (2, config.layers, num_blocks, config.block_size, config.heads, config.head_size)
        cache = torch.zeros(shape, device=devicekit.current_device().torch_device.type)
        self.model.use_cache(cache)
        return cache

    def _block_bytes(self) -> int:
        return self._cache[:, :, 0].nbytes


def _sent(values: list[int] | list[list[int]]) -> torch.Tensor:
    """To the device, beside what it is doing."""
    device = devicekit.current_device()
    tensor = torch.tensor(values, dtype=torch.int64)
    if device.supports("pin_memory"):
        tensor = device.pin_memory(tensor)
    return tensor.to(device.torch_device, non_blocking=True)
