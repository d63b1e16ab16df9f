"""The running batch: every request that decodes, as columns of flat arrays.

A decode step advances all columns with a handful of vector operations. Python objects are touched only for
requests that join or leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.kv import RequestKV
from devicekit.scheduling.request import Request
from devicekit.scheduling.sampling import SamplingColumns

# Rows of the 64-bit state. The first two advance by one in every step.
_SLOT = 0  # KV slot that the step writes
_AT = 1  # flat index in the table's tokens where the step's token goes
_CELL = 2  # flat index in the request table where the next page goes

# Rows of the 32-bit state, and what a step adds to the first of them.
_POSITION = 0  # of the input token, which is the number of tokens whose KV is in the pool
_LENGTH = 1  # the input token included
_ROOM = 2  # slots left in the last page, the input token's included
_STEP = (1, 1, -1)
_ROW = 3  # request row
_LAST = 4  # input token

_FEW = 12
# Scalars as arrays: numpy takes twice as long to make one of a Python number.
_ZERO = np.array(0, np.int32)
_ONE = np.array(1, np.int64)
_NOBODY: list[Request] = []


@dataclass(frozen=True, slots=True)
class _Cut:
    """Views of the first columns of the state."""

    shown: tuple[Int32, Int32, Int32, Int32, Int64]
    step: Int32
    advance_narrow: Int32  # what a step adds `step` to
    advance_wide: Int64  # what it adds one to
    at: Int64
    cell: Int64
    room: Int32


class RunningBatch:
    """Up to ``table.num_rows`` decoding requests over one page pool.

    The arrays it shows are views of its state, valid from `begin_step` until `end_step`, `join` or `leave`.

    Args:
        behind: columns behind the running ones, in which whoever builds a batch may lay out more tokens.
    """

    def __init__(self, table: RequestTable, pages: PageAllocator, page_size: int, behind: int = 0) -> None:
        capacity = table.num_rows + behind
        self._table = table
        self._pages = pages
        self._page_size = page_size
        self._pages_per_row = table.pages_per_row
        self._tokens_per_row = table.tokens_per_row
        self.requests: list[Request] = []
        self.sampling = SamplingColumns(table.num_rows)
        self._step: Int32 = np.repeat(np.array(_STEP, np.int32)[:, None], table.num_rows, axis=1)
        self._size = np.array(page_size, np.int64)
        self._wide: Int64 = np.zeros((3, capacity), np.int64)
        self._narrow: Int32 = np.zeros((5, capacity), np.int32)
        self.all_tokens, self.all_positions = self._narrow[_LAST], self._narrow[_POSITION]
        self.all_rows, self.all_lengths = self._narrow[_ROW], self._narrow[_LENGTH]
        self.all_slots = self._wide[_SLOT]
        self._flat_tokens = table.tokens.reshape(-1)
        self._flat_table = table.pages.reshape(-1)
        # The same memory once more: reading and writing one number through a memoryview costs half of numpy.
        self._narrow_cells = self._narrow.data
        self._wide_cells = self._wide.data
        self._table_cells = self._flat_table.data
        self._token_cells = self._flat_tokens.data
        self._steps = 0  # so far
        self._due: dict[int, list[Request]] = {}  # who reaches its limit, by the step that takes it there
        self._to_come = 0
        self._vacant: list[int] = []  # columns whose request has left
        self._cuts: dict[int, _Cut] = {}  # by how many columns they show
        self.tokens: Int32  # [n] input token of each column
        self.positions: Int32  # [n]
        self.lengths: Int32  # [n]
        self.rows: Int32  # [n] request rows
        self.slots: Int64  # [n] KV slot that each column writes
        self._show(0)

    def __len__(self) -> int:
        return len(self.requests)

    def _show(self, count: int) -> None:
        """Cut the views to ``count`` columns, once after joins and leaves and not in every step."""
        self._shown = count
        now = self._cuts.get(count) or self._cuts.setdefault(count, self._cut(count))
        self._now = now
        self.tokens, self.positions, self.lengths, self.rows, self.slots = now.shown

    def _cut(self, count: int) -> _Cut:
        wide, narrow = self._wide[:, :count], self._narrow[:, :count]
        return _Cut(
            (narrow[_LAST], narrow[_POSITION], narrow[_LENGTH], narrow[_ROW], wide[_SLOT]),
            self._step[:, :count],
            narrow[: len(_STEP)],
            wide[:_CELL],
            at=wide[_AT],
            cell=wide[_CELL],
            room=narrow[_ROOM],
        )

    # -- Joining and leaving ----------------------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """Add a request whose tokens but the last have their KV in the pool."""
        column = self._vacant.pop() if self._vacant else len(self.requests)
        total, row, size = request.total, request.row, self._page_size
        position = total - 1
        room = request.num_pages * size - position
        wide, narrow = self._wide_cells, self._narrow_cells
        if room > 0:
            page = self._table_cells[row * self._pages_per_row + position // size]
            wide[_SLOT, column] = page * size + position % size
        wide[_CELL, column] = row * self._pages_per_row + request.num_pages
        at = row * self._tokens_per_row + total
        wide[_AT, column] = at
        narrow[_POSITION, column] = position
        narrow[_LENGTH, column] = total
        narrow[_ROOM, column] = room
        narrow[_ROW, column] = row
        narrow[_LAST, column] = self._token_cells[at - 1]
        left = request.limit - total
        if left:
            self._to_come += left
            self._due.setdefault(self._steps + left, []).append(request)
        self.sampling.join(column, request)
        request.column = column
        if column == len(self.requests):
            self.requests.append(request)
        else:
            self.requests[column] = request

    def leave(self, request: Request) -> None:
        """Take a request out; how many tokens it has is written back to it."""
        self.vacate(request)
        self.close_up()

    def vacate(self, request: Request) -> None:
        """As `leave`, but its column stays vacant for whoever joins, until `close_up`: both in the same step."""
        column = request.column
        self.settle(request)
        left = request.limit - request.total
        if left:  # at its limit, `end_step` has forgotten it
            self._to_come -= left
            due = self._due[self._steps + left]
            due.remove(request)
            if not due:
                del self._due[self._steps + left]
        if not self.sampling.idle:
            self.sampling.leave(column, request)
        request.column = -1
        self._vacant.append(column)

    def close_up(self) -> None:
        """Move the last columns to where columns are vacant."""
        if not self._vacant:
            return
        for column in sorted(self._vacant, reverse=True):
            moved, last = self.requests.pop(), len(self.requests)
            if column != last:
                self._wide[:, column] = self._wide[:, last]
                self._narrow[:, column] = self._narrow[:, last]
                if not self.sampling.idle:
                    self.sampling.move(last, column)
                self.requests[column] = moved
                moved.column = column
        self._vacant.clear()

    def settle(self, request: Request) -> None:
        """Write back to a running request how many tokens and pages it has, without taking it out."""
        narrow, column = self._narrow_cells, request.column
        position = narrow[_POSITION, column]
        request.computed = position
        request.total = position + 1
        request.num_pages = (position + narrow[_ROOM, column]) // self._page_size

    # -- A decode step ----------------------------------------------------------------------------------------

    def pages_needed(self) -> int:
        """Pages the next step must take before it can run."""
        if self._shown != len(self.requests):
            self._show(len(self.requests))
        return len(self.requests) - int(np.count_nonzero(self._now.room))

    def full_columns(self) -> Int64:
        """The columns that need a page before the next step."""
        return np.flatnonzero(self._now.room == _ZERO) if self.pages_needed() else np.empty(0, np.int64)

    def drop_unseen(self, kv: RequestKV, window: int) -> None:
        """Give back pages that have left the window, of the columns that need a new page.

        Each such column gives back about as many pages as it takes, so a request that decodes holds no more than
        its window, however long it gets.
        """
        for column in self.full_columns().tolist():
            kv.drop(self.requests[column], int(self.positions[column]) - window + 1)

    def begin_step(self, full: int | None = None) -> bool:
        """Give every column whose page is full a new one. False, and nothing changed: the pool is short.

        Args:
            full: what `pages_needed` says, for a caller that has asked already.
        """
        if full is None:
            full = self.pages_needed()
        if not full:
            return True
        if full <= _FEW:
            return self._give_few(full)
        taken = self._pages.take(full)
        if taken is None:
            return False
        pages, now = np.frombuffer(taken, np.int32), self._now
        if full == self._shown:
            self._give_all(pages)
            return True
        columns = (now.room == _ZERO).nonzero()[0]
        cells = now.cell[columns]
        if self._table.followed:
            self._table.mark_cells(cells)
        self._flat_table[cells] = pages
        now.cell[columns] = cells + _ONE
        self.slots[columns] = pages * self._size
        now.room[columns] = self._page_size
        return True

    def _give_all(self, pages: Int32) -> None:
        """As `begin_step` where it is every column's turn, as in each step with pages of one token."""
        now = self._now
        if self._table.followed:
            self._table.mark_cells(now.cell)
        self._flat_table[now.cell] = pages
        np.add(now.cell, _ONE, now.cell)
        self.slots[:] = pages
        if self._page_size > 1:
            np.multiply(self.slots, self._size, self.slots)
        now.room.fill(self._page_size)

    def _give_few(self, full: int) -> bool:
        """As `begin_step`, one by one: for a few columns that is cheaper than a dozen vector operations."""
        if self._pages.available < full:
            return False
        size, take_one = self._page_size, self._pages.take_one
        narrow, wide, table = self._narrow_cells, self._wide_cells, self._table_cells
        columns = (self._now.room == _ZERO).nonzero()[0]
        if self._table.followed:
            self._table.mark_cells(self._now.cell[columns])
        for column in columns.tolist():
            cell = wide[_CELL, column]
            table[cell] = page = take_one()
            wide[_CELL, column] = cell + 1
            wide[_SLOT, column] = page * size
            narrow[_ROOM, column] = size
        return True

    def to_come(self) -> int:
        """Output tokens that the running requests may still produce, at most."""
        return self._to_come

    def end_step(self, tokens: Int32) -> list[Request]:
        """Append each column's new token; return the requests whose output is now long enough."""
        now = self._now
        self._flat_tokens[now.at] = tokens
        self.tokens[:] = tokens
        wide, narrow = now.advance_wide, now.advance_narrow
        np.add(wide, _ONE, wide)
        np.add(narrow, now.step, narrow)
        self._steps = steps = self._steps + 1
        self._to_come -= self._shown
        return self._due.pop(steps, _NOBODY)
