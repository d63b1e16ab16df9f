"""Host memory on pages of its own: whoever locks a tensor may lock the whole pages on which it is."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["NUMBERS", "on_own_pages"]

NUMBERS = 4 * mmap.PAGESIZE // 8  # int64 on four pages; a quarter of them is one page


def on_own_pages(count: int = NUMBERS) -> torch.Tensor:
    """``torch.arange(count)`` at the beginning of a page, on pages where nothing else is."""
    import torch

    size = -(-count * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
    room = torch.empty(size + mmap.PAGESIZE, dtype=torch.uint8)
    start = -room.data_ptr() % mmap.PAGESIZE
    return torch.arange(count, out=room[start : start + count * 8].view(torch.int64))
