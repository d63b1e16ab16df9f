"""The request table: one row of page ids and tokens per running request, and who holds which row.

Row 0 is padding: it is never handed out and its pages stay 0, so a batch padded with row 0 reads and writes
padding only. Writers fill `pages` in place and then mark what they touched; a `TableMirror` uploads what
was marked and nothing else, and where there is no mirror marking costs nothing. What a row holds right after it
was handed out is left over from its previous holder: only as many pages as the new holder has written mean
anything.
"""

from __future__ import annotations

from math import gcd

import numpy as np
import numpy.typing as npt

from devicekit.memory import page_ids
from devicekit.memory.cells import Rows, flat
from devicekit.memory.pages import PageAllocator
from devicekit.ranges import MOST_IDS, whole

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_BLOCK = 64  # columns, at most, that are marked and uploaded together
_MANY = 4096  # notes of changes, before they are thinned out


class Changes:
    """What was marked since the last `take`, for one reader.

    A block is ``block`` columns of one row; block `b` is ``pages.reshape(-1, block)[b]``.
    """

    __slots__ = ("_block", "_noted")

    def __init__(self, block: int, blocks: Int64) -> None:
        self._block = block
        self._noted: list[Int64] = [blocks]

    def note(self, cells: Int64) -> None:
        """These cells of the table changed, counted through all rows."""
        self._noted.append(cells // self._block)
        if len(self._noted) > _MANY:
            self._noted = [self.take()]

    def take(self) -> Int64:
        """The numbers of the blocks that changed, ascending."""
        blocks, self._noted = np.unique(np.concatenate([_NOTHING, *self._noted])), []
        return blocks


_NOTHING: Int64 = np.empty(0, np.int64)


class RequestTable:
    """Page tables of up to `num_rows` requests, `pages_per_row` pages each.

    `pages` is int32 [num_rows + 1, pages_per_row], contiguous, and `tokens` int32 [num_rows + 1, tokens_per_row]:
    rows of it that were never used cost address space, not memory. `page_rows` and `token_rows` read and write
    pieces of both at a lower price. `generation` is int64 [num_rows + 1] and grows by one each time a row is
    handed out, whatever happens in between, so that a stale reference (row, generation) can be told from a live
    one. With ``checked=True`` a row given back twice raises (see `PageAllocator`). Changes are followed in blocks
    of columns; `pages_per_row` should be a multiple of 64, or blocks are smaller and following them is slower.
    `subscribed` says whether anybody does.
    """

    __slots__ = (
        "_subscribers",
        "_generation",
        "page_rows",
        "token_rows",
        "block",
        "subscribed",
        "generation",
        "pages",
        "rows",
        "tokens",
        "tokens_per_row",
    )

    def __init__(
        self, num_rows: int, pages_per_row: int, tokens_per_row: int = 0, *, checked: bool = False
    ) -> None:
        whole("num_rows", num_rows, most=MOST_IDS)
        whole("pages_per_row", pages_per_row, least=1)
        whole("tokens_per_row", tokens_per_row)
        self.rows = PageAllocator(num_rows, checked=checked)
        self.pages: Int32 = np.zeros((num_rows + 1, pages_per_row), np.int32)
        self.tokens: Int32 = np.zeros((num_rows + 1, tokens_per_row), np.int32)
        self.tokens_per_row = tokens_per_row
        self.token_rows, self.page_rows = Rows(self.tokens), Rows(self.pages)
        self.generation: Int64 = np.zeros(num_rows + 1, np.int64)
        self._generation: memoryview = flat(self.generation)
        self.block = gcd(pages_per_row, _BLOCK)
        self.subscribed = False
        self._subscribers: tuple[Changes, ...] = ()

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

    def write_pages(self, row: int, start: int, pages: bytes) -> None:
        """Put page ids (int32 bytes) in a row, from its page ``start`` on, and mark them as changed."""
        self.page_rows.write(row, start, pages)
        if self.subscribed:
            self.mark_dirty(row, start + page_ids.count(pages))

    def mark_dirty(self, row: int, count: int | None = None) -> None:
        """Say that the first `count` pages of a row changed; by default all of them."""
        if self.subscribed:
            start = row * self.pages_per_row
            end = start + (self.pages_per_row if count is None else count)
            # One cell of each block, and the last one, which may be in a block of its own.
            self.mark_cells_dirty(
                np.append(np.arange(start, end, self.block, dtype=np.int64), max(start, end - 1))
            )

    def mark_cells_dirty(self, cells: Int64) -> None:
        """Say that these cells of the table changed, counted through all rows as in ``pages.reshape(-1)``."""
        for changes in self._subscribers:
            changes.note(cells)

    def subscribe(self) -> Changes:
        """Changes from now on, beginning with all that has pages now."""
        written = np.flatnonzero(self.pages.reshape(-1, self.block).any(axis=1))
        changes = Changes(self.block, written)
        self._subscribers = (*self._subscribers, changes)
        self.subscribed = True
        return changes
