"""The running batch: every request that decodes, as columns of flat arrays.

A decode step advances all columns with a handful of vector operations. Python objects are touched only for
requests that join or leave.
"""

from __future__ import annotations

import numpy as np

from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.kv import RequestKV
from devicekit.scheduling.request import Request
from devicekit.scheduling.sampling import SamplingColumns

# Rows of the 64-bit state. Both advance by one in every step.
_SLOT = 0  # KV slot that the step writes
_AT = 1  # flat index in `history` where the step's token goes

# Rows of the 32-bit state, and what a step adds to the first of them.
_POSITION = 0  # of the input token, which is the number of tokens whose KV is in the pool
_LENGTH = 1  # the input token included
_ROOM = 2  # slots left in the last page, the input token's included
_STEP = np.array([[1], [1], [-1]], dtype=np.int32)
_ROW = 3  # request row
_LIMIT = 4  # length at which the output is long enough
_LAST = 5  # input token

_FEW = 12


class RunningBatch:
    """Up to ``table.num_rows`` decoding requests over one page pool.

    The arrays it shows are views of its state, valid from `begin_step` until `end_step`, `join` or `leave`.
    """

    def __init__(self, table: RequestTable, pages: PageAllocator, page_size: int, max_tokens: int) -> None:
        capacity = table.num_rows
        self._table = table
        self._pages = pages
        self._page_size = page_size
        # Tokens of every request with a row. Untouched rows cost address space, not memory.
        self.history: Int32 = np.zeros((capacity + 1, max_tokens + 1), np.int32)
        self.requests: list[Request] = []
        self.sampling = SamplingColumns(capacity)
        self._wide: Int64 = np.zeros((2, capacity), np.int64)
        self._narrow: Int32 = np.zeros((6, capacity), np.int32)
        self._flat_history = self.history.reshape(-1)
        self._flat_table = table.pages.reshape(-1)
        # The same memory once more: reading and writing one number through a memoryview costs half of numpy.
        self._narrow_cells = self._narrow.data
        self._wide_cells = self._wide.data
        self._table_cells = self._flat_table.data
        self._slack = 0  # steps until some column may reach its limit
        self._shown = 0
        self._show(0)

    def __len__(self) -> int:
        return len(self.requests)

    def _show(self, count: int) -> None:
        """Cut the views to ``count`` columns, once after joins and leaves and not in every step."""
        self._shown = count
        self._wide_now = self._wide[:, :count]
        self._narrow_now = self._narrow[: len(_STEP), :count]
        self._at_now = self._wide[_AT, :count]
        self._room_now = self._narrow[_ROOM, :count]
        self._limit_now = self._narrow[_LIMIT, :count]
        self.tokens: Int32 = self._narrow[_LAST, :count]  # [n] input token of each column
        self.positions: Int32 = self._narrow[_POSITION, :count]  # [n]
        self.lengths: Int32 = self._narrow[_LENGTH, :count]  # [n]
        self.slots: Int64 = self._wide[_SLOT, :count]  # [n] KV slot that each column writes
        self.rows: Int32 = self._narrow[_ROW, :count]  # [n] request rows

    # -- Joining and leaving ----------------------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """Add a request whose tokens but the last have their KV in the pool."""
        column = len(self.requests)
        position, row, size = request.total - 1, request.row, self._page_size
        room = request.num_pages * size - position
        if room > 0:
            page = int(self._table.pages[row, position // size])
            self._wide[_SLOT, column] = page * size + position % size
        self._wide[_AT, column] = row * self.history.shape[1] + request.total
        last = self.history[row, position]
        self._narrow[:, column] = (position, request.total, room, row, request.limit, last)
        left = request.limit - request.total
        self._slack = min(self._slack, left) if column else left
        self.sampling.join(column, request)
        request.column = column
        self.requests.append(request)

    def leave(self, request: Request) -> None:
        """Take a request out; how many tokens it has is written back to it."""
        column, last = request.column, len(self.requests) - 1
        self.settle(request)
        self.sampling.leave(column, last, request)
        request.column = -1
        moved = self.requests.pop()
        if column != last:
            self._wide[:, column] = self._wide[:, last]
            self._narrow[:, column] = self._narrow[:, last]
            self.requests[column] = moved
            moved.column = column

    def settle(self, request: Request) -> None:
        """Write back to a running request how many tokens and pages it has, without taking it out."""
        position, _, room, _, _, _ = self._narrow[:, request.column].tolist()
        request.computed = position
        request.total = position + 1
        request.num_pages = (position + room) // self._page_size

    # -- A decode step ----------------------------------------------------------------------------------------

    def pages_needed(self) -> int:
        """Pages the next step must take before it can run."""
        if self._shown != len(self.requests):
            self._show(len(self.requests))
        return len(self.requests) - int(np.count_nonzero(self._room_now))

    def full_columns(self) -> Int64:
        """The columns that need a page before the next step."""
        return np.flatnonzero(self._room_now == 0) if self.pages_needed() else np.empty(0, np.int64)

    def drop_unseen(self, kv: RequestKV, window: int) -> None:
        """Give back pages that have left the window, of the columns that need a new page.

        Each such column gives back about as many pages as it takes, so a request that decodes holds no more than
        its window, however long it gets.
        """
        if self.pages_needed():
            for column in np.flatnonzero(self._room_now == 0).tolist():
                kv.drop(self.requests[column], int(self.positions[column]) - window + 1)

    def begin_step(self) -> bool:
        """Give every column whose page is full a new one. False, and nothing changed: the pool is short."""
        full = self.pages_needed()
        if not full:
            return True
        if full <= _FEW:
            return self._give_few(full)
        pages = self._pages.take_array(full)
        if pages is None:
            return False
        room, size = self._room_now, self._page_size
        columns = (room == 0).nonzero()[0]
        rows = self.rows[columns].astype(np.int64)
        index = self.positions[columns] // size
        self._flat_table[rows * self._table.pages_per_row + index] = pages
        self._table.mark(rows, index)
        self.slots[columns] = pages.astype(np.int64) * size
        room[columns] = size
        return True

    def _give_few(self, full: int) -> bool:
        """As `begin_step`, one by one: for a few columns that is cheaper than a dozen vector operations."""
        if self._pages.available < full:
            return False
        size, width, mark = self._page_size, self._table.pages_per_row, self._table.mark
        narrow, wide, cells = self._narrow_cells, self._wide_cells, self._table_cells
        take_one = self._pages.take_one
        for column in (self._room_now == 0).nonzero()[0].tolist():
            row, index = narrow[_ROW, column], narrow[_POSITION, column] // size
            page = take_one()
            cells[row * width + index] = page
            mark(row, index)
            wide[_SLOT, column] = page * size
            narrow[_ROOM, column] = size
        return True

    def to_come(self) -> int:
        """Output tokens that the running requests may still produce, at most."""
        return int(self._limit_now.sum(dtype=np.int64) - self.lengths.sum(dtype=np.int64))

    def end_step(self, tokens: Int32) -> Int64 | None:
        """Append each column's new token; return the columns that reached their limit, ``None`` if none can."""
        self._flat_history[self._at_now] = tokens
        self.tokens[:] = tokens
        wide, narrow = self._wide_now, self._narrow_now
        np.add(wide, 1, out=wide)
        np.add(narrow, _STEP, out=narrow)
        self._slack -= 1
        if self._slack > 0:
            return None
        left = self._limit_now - self.lengths
        going_on = left[left > 0]
        self._slack = int(going_on.min()) if len(going_on) else 0
        return np.flatnonzero(left <= 0)
