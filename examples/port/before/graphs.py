"""Decoding as captured graphs, one for each size of a batch."""

from __future__ import annotations

from typing import Any

import torch

from .config import EngineConfig
from .model import Inputs, Model


class DecodeGraphs:
    """Captures once; afterwards a step is copies into fixed buffers and one launch."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        most = config.max_running
        self._model = model
        self._buffers = Inputs(
            tokens=torch.zeros(most, dtype=torch.int64, device="cuda"),
            positions=torch.zeros(most, dtype=torch.int64, device="cuda"),
            slots=torch.zeros(most, dtype=torch.int64, device="cuda"),
            tables=torch.zeros(most, config.blocks_per_sequence, dtype=torch.int64, device="cuda"),
        )
        self._scores = torch.zeros(most, config.vocabulary, device="cuda")
        self._sizes = sorted({1, 2, most})
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def capture(self) -> None:
        """The largest first, whose memory the others share."""
        for size in reversed(self._sizes):
            inputs = self._part(size)
            self._scores[:size] = self._model(inputs)  # what is made on first use is made here
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool):
                self._scores[:size] = self._model(inputs)
            if self._pool is None:
                self._pool = graph.pool()
            self._graphs[size] = graph
            torch.cuda.synchronize()

    def run(self, inputs: Inputs) -> torch.Tensor:
        """Scores of a batch that decodes."""
        count = len(inputs.tokens)
        size = next(size for size in self._sizes if size >= count)
        self._buffers.slots.zero_()  # of those that are not there: the padding block
        self._part(count).tokens.copy_(inputs.tokens)
        self._part(count).positions.copy_(inputs.positions)
        self._part(count).slots.copy_(inputs.slots)
        self._part(count).tables.copy_(inputs.tables)
        self._graphs[size].replay()
        return self._scores[:count]

    def _part(self, size: int) -> Inputs:
        all_of = self._buffers
        return Inputs(
            all_of.tokens[:size], all_of.positions[:size], all_of.slots[:size], all_of.tables[:size]
        )
