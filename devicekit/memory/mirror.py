"""The request table's copy on a device, kept up to date by uploading only what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from devicekit.memory.rows import RequestTable


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
        # The gather copies: the table may change again while an asynchronous upload is under way.
        values = torch.from_numpy(table.pages.reshape(-1, table.block)[blocks])
        target = self.tensor.view(-1, table.block)
        target.index_copy_(0, torch.from_numpy(blocks).to(device), values.to(device))
        return len(set((blocks // (table.pages_per_row // table.block)).tolist()))
