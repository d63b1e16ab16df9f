"""The running batch: every request that decodes, as columns of flat arrays.

A decode step advances all columns with a handful of vector operations. Python objects are touched only for
requests that join or leave.
"""

from __future__ import annotations

import numpy as np

from devicekit.memory import page_ids
from devicekit.memory.cells import FEW, ONE, ZERO, flat
from devicekit.memory.pages import PagePool
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.columns import Columns
from devicekit.scheduling.request import Request
from devicekit.scheduling.sampling import SamplingColumns

_NOBODY: list[Request] = []


class RunningBatch:
    """Up to ``table.num_rows`` decoding requests over one page pool.

    ``view`` shows the running columns; it is valid from `begin_step` until `end_step`, `join` or `vacate`.

    Args:
        behind: columns behind the running ones, in which whoever builds a batch may lay out more tokens.
    """

    def __init__(self, table: RequestTable, pages: PagePool, page_size: int, behind: int = 0) -> None:
        self._table = table
        self._pages = pages
        self._page_size = page_size
        self._slots_per_page = np.array(page_size, np.int64)
        self._pages_per_row = table.pages_per_row
        self._tokens_per_row = table.tokens_per_row
        self._table_pages = table.pages.reshape(-1)
        self._page_table = flat(table.pages)
        self._table_tokens = table.tokens.reshape(-1)
        self.requests: list[Request] = []
        self.columns = Columns(table.num_rows, behind)
        self.sampling = SamplingColumns(table.num_rows)
        self._cells = self.columns.cells
        self._steps = 0  # so far
        self.changes = 0  # grows with whoever joins or leaves: columns are where they were until then
        self._due: dict[int, list[Request]] = {}  # who reaches its limit, by the step that takes it there
        self._remaining = 0
        self._vacant: list[int] = []  # columns whose request has left
        self._show(0)

    def __len__(self) -> int:
        return len(self.requests)

    def _show(self, count: int) -> None:
        """Make ``view`` the first ``count`` columns: after joins and leaves, not in every step."""
        self._shown = count
        self.view = self.columns.view(count)

    # -- Joining and leaving ----------------------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """Add a request. All its tokens but the last have their KV in the pool."""
        column = self._vacant.pop() if self._vacant else len(self.requests)
        total, size, cells = request.total, self._page_size, self._cells
        position = total - 1
        room = request.num_pages * size - position
        first_page = request.row * self._pages_per_row
        token_cell = request.row * self._tokens_per_row + total
        if room > 0:
            cells.slot[column] = (
                self._table_pages.item(first_page + position // size) * size + position % size
            )
        cells.token_cell[column] = token_cell
        cells.page_cell[column] = first_page + request.num_pages
        cells.position[column] = position
        cells.length[column] = total
        cells.room[column] = room
        cells.row[column] = request.row
        cells.token[column] = self._table_tokens.item(token_cell - 1)
        left = request.max_total_tokens - total
        if left:
            self._remaining += left
            self._due.setdefault(self._steps + left, []).append(request)
        if request.needs_every_step:
            self.sampling.join(column, request)
        request.column = column
        self.changes += 1
        if column == len(self.requests):
            self.requests.append(request)
        else:
            self.requests[column] = request

    def vacate(self, request: Request) -> None:
        """Take a request out, and write back to it how many tokens it has.

        Its column stays vacant for whoever joins, until `close_up` in the same step.
        """
        column = request.column
        self.settle(request)
        left = request.max_total_tokens - request.total
        if left:  # at its limit, `end_step` has forgotten it
            self._remaining -= left
            due = self._due[self._steps + left]
            due.remove(request)
            if not due:
                del self._due[self._steps + left]
        if not self.sampling.idle:
            self.sampling.leave(column, request)
        request.column = -1
        self.changes += 1
        self._vacant.append(column)

    def close_up(self) -> None:
        """Move the last columns into the vacant ones."""
        if not self._vacant:
            return
        for column in sorted(self._vacant, reverse=True):
            moved, last = self.requests.pop(), len(self.requests)
            if column != last:
                self.columns.move(last, column)
                if not self.sampling.idle:
                    self.sampling.move(last, column)
                self.requests[column] = moved
                moved.column = column
        self._vacant.clear()

    def settle(self, request: Request) -> None:
        """Write back to a running request how many tokens and pages it has, without taking it out."""
        column, cells = request.column, self._cells
        position = cells.position[column]
        request.computed = position
        request.total = position + 1
        request.num_pages = (position + cells.room[column]) // self._page_size

    # -- A decode step ----------------------------------------------------------------------------------------

    def full_columns(self) -> Int64:
        """The columns that need a page before the next step."""
        if self._shown != len(self.requests):
            self._show(len(self.requests))
        full: Int64 = (self.view.room == ZERO).nonzero()[0]
        return full

    def begin_step(self, full: Int64 | None = None) -> bool:
        """Give a new page to every column whose page is full. False, and nothing changed: there are too few.

        Args:
            full: what `full_columns` says, for a caller that has asked already.
        """
        if full is None:
            full = self.full_columns()
        if not len(full):
            return True
        taken = self._pages.take(len(full))
        if taken is None:
            return False
        if len(full) <= FEW:
            self._give_few(full, taken)
            return True
        view, pages = self.view, page_ids.as_array(taken)
        cells = view.page_cells[full]
        if self._table.subscribed:
            self._table.mark_cells_dirty(cells)
        self._table_pages[cells] = pages
        view.page_cells[full] = cells + ONE
        view.slots[full] = pages * self._slots_per_page
        view.room[full] = self._page_size
        return True

    def _give_few(self, full: Int64, taken: bytes) -> None:
        """As `begin_step`, one by one."""
        size, cells = self._page_size, self._cells
        if self._table.subscribed:
            self._table.mark_cells_dirty(self.view.page_cells[full])
        for column, page in zip(full.tolist(), page_ids.numbers(taken), strict=True):
            cell = cells.page_cell[column]
            self._page_table[cell] = page
            cells.page_cell[column] = cell + 1
            cells.slot[column] = page * size
            cells.room[column] = size

    @property
    def remaining_tokens(self) -> int:
        """Output tokens that the running requests may still produce, at most."""
        return self._remaining

    def end_step(self, tokens: Int32) -> list[Request]:
        """Append each column's new token; return the requests whose output is now long enough."""
        view = self.view
        self._table_tokens[view.token_cells] = tokens
        view.tokens[:] = tokens
        np.add(view.advancing_wide, ONE, view.advancing_wide)
        np.add(view.advancing_narrow, view.step, view.advancing_narrow)
        self._steps = steps = self._steps + 1
        self._remaining -= self._shown
        return self._due.pop(steps, _NOBODY)
