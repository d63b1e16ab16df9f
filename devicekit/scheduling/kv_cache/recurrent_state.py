"""Models with recurrent layers: each request holds a state slot along with its row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from devicekit.memory.audit import Conservation, audit
from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import ForwardBatch, Int32
from devicekit.scheduling.kv_cache.layers import Chunk, LayerCacheManager
from devicekit.scheduling.request import Request


class RecurrentStateManager(LayerCacheManager):
    """Gives each request a slot of ``slots``; ``of`` has the slot of each row."""

    fills = True
    name = "states"

    def __init__(self, table: RequestTable, slots: PageAllocator) -> None:
        self.slots = slots
        self.of: Int32 = np.zeros(table.num_rows + 1, np.int32)

    @property
    def may_start(self) -> bool:
        return self.slots.available > 0

    def seat(self, request: Request, own: Int32) -> None:
        self.of[request.row] = self.slots.take_one()

    def fill(self, batch: ForwardBatch, chunks: Iterable[Chunk]) -> None:
        batch.state_slots = self.of[batch.req_pool_indices]

    def free(self, request: Request) -> None:
        self.slots.give_one(int(self.of[request.row]))

    def reset(self) -> None:
        self.slots.reset()

    @property
    def pool(self) -> PageAllocator:
        return self.slots

    @property
    def at_rest(self) -> bool:
        return self.slots.available == self.slots.num_pages

    def audit(self, holders: Sequence[Request]) -> Conservation:
        rows = np.array([request.row for request in holders], np.int32)
        return audit(self.slots, owned=self.of[rows])
