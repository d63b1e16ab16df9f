"""The request table's copy on a device, kept up to date by uploading only the rows that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from devicekit.memory.rows import RequestTable


class TableMirror:
    """Follows a `RequestTable`. `tensor` is int32 [num_rows + 1, pages_per_row] on `device`.

    `tensor` keeps its address for the mirror's whole life, so a captured graph may read it.
    """

    __slots__ = ("_mark", "_table", "tensor")

    def __init__(self, table: RequestTable, device: torch.device) -> None:
        self._table = table
        self._mark = 0
        self.tensor = torch.zeros(table.pages.shape, dtype=torch.int32, device=device)

    def sync(self) -> int:
        """Upload the rows marked since the last call, on the current stream; how many there were."""
        rows, self._mark = self._table.changed_since(self._mark)
        if not len(rows):
            return 0
        device = self.tensor.device
        # The gather copies: the table may change again while an asynchronous upload is under way.
        values = torch.from_numpy(self._table.pages[rows])
        self.tensor.index_copy_(0, torch.from_numpy(rows).to(device), values.to(device))
        return len(rows)
