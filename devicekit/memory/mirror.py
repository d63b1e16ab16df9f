"""The request table's copy on a device, kept up to date by uploading only what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from devicekit.memory.rows import RequestTable


def upload(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array's copy on a device, or on the host the array itself. The host waits for nothing.

    Memory that is not page-locked is read before this returns, so the array may change at once.
    """
    return torch.from_numpy(array).to(device, non_blocking=True)


class TableMirror:
    """Follows a `RequestTable`. `tensor` is int32 [num_rows + 1, pages_per_row] on `device`.

    `tensor` keeps its address for the mirror's whole life, so a captured graph may read it.
    """

    __slots__ = ("_changes", "table", "tensor")

    def __init__(self, table: RequestTable, device: torch.device) -> None:
        self.table = table
        self._changes = table.subscribe()
        self.tensor = torch.zeros(table.pages.shape, dtype=torch.int32, device=device)

    def sync(self) -> int:
        """Upload what was marked since the last call, on the current stream; returns the number of rows."""
        table = self.table
        blocks = self._changes.take()
        if not len(blocks):
            return 0
        device = self.tensor.device
        values = table.pages.reshape(-1, table.block)[blocks]
        target = self.tensor.view(-1, table.block)
        target.index_copy_(0, upload(blocks, device), upload(values, device))
        return len(set((blocks // (table.pages_per_row // table.block)).tolist()))
