"""A model so small that the host can say what every token must be, whose only memory is the device's KV pool.

The next token is a sum over everything the sequence has written to the pool, and one weight. A key that is lost,
stale or another sequence's changes every token after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from devicekit.memory.kv import KVLayout, KVPool
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput

if TYPE_CHECKING:
    from devicekit.device import Device

VOCABULARY = 251
MAX_POSITIONS = 96


def next_token(tokens: Sequence[int], weight: int) -> int:
    """What the model says after ``tokens``, computed on the host."""
    return (31 * sum(tokens) + 7 * len(tokens) + weight) % VOCABULARY


@dataclass(frozen=True)
class Written:
    """What a weight update wrote."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class _StagedNumber:
    """A new weight that is not written yet."""

    weight: torch.Tensor
    number: int

    def write(self) -> Written:
        self.weight.fill_(self.number)
        return Written(1, self.weight.nbytes)

    def settle(self) -> None: ...


class SumModel:
    """A runner over a KV pool of one layer, one head and one element."""

    def __init__(self, device: Device, num_pages: int, page_size: int, weight: int) -> None:
        self.limits = ModelLimits(VOCABULARY, MAX_POSITIONS, frozenset())
        layout = KVLayout(1, 1, 1, 1, torch.float32)
        self._where = device.torch_device
        self._pool = KVPool(device, layout, num_pages, page_size)
        self._weight = torch.full((1,), weight, dtype=torch.int32, device=self._where)

    def step(self, batch: ForwardBatch) -> StepOutput:
        values = self._upload(batch.input_ids.astype(np.float32)).view(-1, 1, 1)
        self._pool.write(0, self._upload(batch.slot_mapping.astype(np.int64)), values, values)
        weight = int(self._weight.cpu()[0])
        found = [self._answer(batch, int(index), weight) for index in batch.logits_indices]
        return StepOutput(np.asarray(found, np.int32))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", self._weight

    def stage_from_disk(self, path: str, within: Sequence[str] = ()) -> _StagedNumber:
        """Take ``path`` for the new weight: a checkpoint needs no disk when it is one number."""
        return _StagedNumber(self._weight, int(path))

    def _answer(self, batch: ForwardBatch, index: int, weight: int) -> int:
        sequence = int(np.searchsorted(batch.query_start_loc, index, side="right")) - 1
        positions = np.arange(int(batch.positions[index]) + 1)
        pages = batch.page_table[int(batch.req_pool_indices[sequence])][positions // batch.page_size]
        slots = pages.astype(np.int64) * batch.page_size + positions % batch.page_size
        keys, _ = self._pool.read(0, self._upload(slots))
        seen = [int(value) for value in keys.view(-1).cpu().tolist()]
        return next_token(seen, weight)

    def _upload(self, array: np.ndarray[tuple[int], np.dtype[np.generic]]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._where)
