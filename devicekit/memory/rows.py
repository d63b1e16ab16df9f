"""The request table: one row of page ids per running request, and who holds which row.

Row 0 is padding: it is never handed out and its pages stay 0, so a batch padded with row 0 reads and writes
padding only. Writers fill `pages` in place and then `mark` what they touched; a `TableMirror` uploads what
was marked and nothing else. What a row holds right after it was handed out is left over from its previous
holder: only as many pages as the new holder has written mean anything.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from devicekit.memory.pages import PageAllocator

if TYPE_CHECKING:
    from collections.abc import Sequence

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_BLOCK = 64  # columns, at most, that are marked and uploaded together


class RequestTable:
    """Page tables of up to `num_rows` requests, `pages_per_row` pages each.

    `pages` is int32 [num_rows + 1, pages_per_row], contiguous; `generation` is int64 [num_rows + 1] and grows
    by one each time a row is handed out, whatever happens in between, so that a stale reference (row,
    generation) can be told from a live one. With ``checked=True`` a row given back twice raises (see
    `PageAllocator`). Changes are tracked in blocks of columns; `pages_per_row` should be a multiple of 64, or
    blocks are smaller and following them is slower.
    """

    __slots__ = (
        "_block_stamps",
        "_clock",
        "_generation",
        "_row_stamps",
        "block",
        "generation",
        "pages",
        "rows",
    )

    def __init__(self, num_rows: int, pages_per_row: int, *, checked: bool = False) -> None:
        if pages_per_row < 1:
            raise ValueError(f"pages_per_row must be at least 1, got {pages_per_row}")
        self.rows = PageAllocator(num_rows, checked=checked)
        self.pages: Int32 = np.zeros((num_rows + 1, pages_per_row), np.int32)
        self.generation: Int64 = np.zeros(num_rows + 1, np.int64)
        self._generation: memoryview = self.generation.data
        self.block = gcd(pages_per_row, _BLOCK)
        # When each row, and each block of it, last changed, on a clock that mirrors advance: any number of
        # mirrors can follow, and the blocks of rows that did not change are never looked at.
        self._row_stamps: Int64 = np.zeros(num_rows + 1, np.int64)
        self._block_stamps: Int64 = np.zeros((num_rows + 1, pages_per_row // self.block), np.int64)
        self._clock = 1

    @property
    def num_rows(self) -> int:
        return self.rows.num_pages

    @property
    def pages_per_row(self) -> int:
        return int(self.pages.shape[1])

    @property
    def available(self) -> int:
        """Rows that can be taken now."""
        return self.rows.available

    def take_one(self) -> int:
        """Take a row; 0 when none is available."""
        row: int = self.rows.take_one()
        if row:
            self._generation[row] += 1
        return row

    def give_one(self, row: int) -> None:
        """Give a row back."""
        self.rows.give_one(row)

    def reset(self) -> None:
        """Make every row free again. Generations stay; costs the same at any size."""
        self.rows.reset()

    def mark(
        self, rows: int | Int32 | Int64 | Sequence[int], columns: int | Int32 | Int64 | None = None
    ) -> None:
        """Say that pages of these rows changed: one column of each row, or by default the whole rows."""
        self._row_stamps[rows] = self._clock
        if columns is None:
            self._block_stamps[rows] = self._clock
        else:
            self._block_stamps[rows, columns // self.block] = self._clock

    def changed_since(self, mark: int) -> tuple[int, Int64, int]:
        """What was marked after `mark` (0: ever): rows, the numbers of their blocks, the next mark to pass.

        Block `b` is ``pages.reshape(-1, block)[b]``.
        """
        rows = np.flatnonzero(self._row_stamps > mark)
        at, block = np.nonzero(self._block_stamps[rows] > mark)
        blocks: Int64 = rows[at] * self._block_stamps.shape[1] + block
        mark = self._clock
        self._clock = mark + 1
        return len(rows), blocks, mark
