"""The running batch: every request that decodes, as columns of flat arrays.

A decode step advances all columns with a handful of vector operations. Python objects are touched only for
requests that join or leave.
"""

from __future__ import annotations

import numpy as np

from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.request import Request
from devicekit.scheduling.sampling import SamplingColumns

# Rows of the state matrix. Each step adds _STEP to every column.
_LENGTH = 0  # tokens whose KV is in the pool; position of the token about to be computed
_SLOT = 1  # KV slot of that token
_AT = 2  # flat index in `history` where the token after it will be written
_ROOM = 3  # slots left in the last page, that token's included
_LEFT = 4  # output tokens still to come
_ROW = 5  # request row
_STEP = np.array([[1], [1], [1], [-1], [-1], [0]], dtype=np.int64)


class RunningBatch:
    """Up to ``capacity`` decoding requests over one page pool."""

    def __init__(self, table: RequestTable, pages: PageAllocator, page_size: int, max_tokens: int) -> None:
        capacity = table.num_rows
        self._table = table
        self._pages = pages
        self._page_size = page_size
        self.history: Int32 = np.zeros((capacity + 1, max_tokens + 1), np.int32)
        self.requests: list[Request] = []
        self._state: Int64 = np.zeros((len(_STEP), capacity), np.int64)
        self._last: Int32 = np.zeros(capacity, np.int32)
        self._history = self.history.reshape(-1)
        self._table_pages = table.pages.reshape(-1)
        self.sampling = SamplingColumns(capacity)
        self._slack = 0  # steps until some column may reach its limit

    def __len__(self) -> int:
        return len(self.requests)

    # -- Joining and leaving ----------------------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """Add a request whose tokens but the last have their KV in the pool."""
        column = len(self.requests)
        length = request.total - 1
        row, size = request.row, self._page_size
        state = self._state
        state[_LENGTH, column] = length
        state[_AT, column] = row * self.history.shape[1] + request.total
        state[_ROW, column] = row
        left = request.limit - request.total
        state[_LEFT, column] = left
        room = request.num_pages * size - length
        state[_ROOM, column] = room
        if room > 0:
            state[_SLOT, column] = int(self._table.pages[row, length // size]) * size + length % size
        self._last[column] = self.history[row, length]
        self._slack = min(self._slack, left) if column else left
        self.sampling.join(column, request)
        request.column = column
        self.requests.append(request)

    def leave(self, request: Request) -> None:
        """Take a request out; its tokens and length are written back to it."""
        column, last = request.column, len(self.requests) - 1
        self.settle(request)
        self.sampling.leave(column, last, request)
        request.column = -1
        moved = self.requests.pop()
        if column != last:
            self._state[:, column] = self._state[:, last]
            self._last[column] = self._last[last]
            self.requests[column] = moved
            moved.column = column

    def settle(self, request: Request) -> None:
        """Write a running request's length back to it, without taking it out."""
        request.computed = int(self._state[_LENGTH, request.column])
        request.total = request.computed + 1

    # -- A decode step ----------------------------------------------------------------------------------------

    def pages_needed(self) -> int:
        """Pages the next step must take before it can run."""
        count = len(self.requests)
        return count - int(np.count_nonzero(self._state[_ROOM, :count]))

    def begin_step(self) -> bool:
        """Give every column whose page is full a new one. False, and nothing changed: the pool is short."""
        count = len(self.requests)
        room = self._state[_ROOM, :count]
        full = count - int(np.count_nonzero(room))
        if not full:
            return True
        pages = self._pages.take_array(full)
        if pages is None:
            return False
        columns = np.flatnonzero(room == 0)
        size, state = self._page_size, self._state
        rows = state[_ROW, columns]
        index = state[_LENGTH, columns] // size
        self._table_pages[rows * self._table.pages_per_row + index] = pages
        self._table.mark(rows)
        state[_SLOT, columns] = pages.astype(np.int64) * size
        state[_ROOM, columns] = size
        requests = self.requests
        for column in columns.tolist():
            requests[column].num_pages += 1
        return True

    @property
    def tokens(self) -> Int32:
        """[n] Input token of each column."""
        return self._last[: len(self.requests)]

    @property
    def lengths(self) -> Int64:
        """[n] Tokens whose KV is in the pool: the positions of `tokens`."""
        return self._state[_LENGTH, : len(self.requests)]

    @property
    def slots(self) -> Int64:
        """[n] KV slot that each column writes in this step."""
        return self._state[_SLOT, : len(self.requests)]

    @property
    def rows(self) -> Int64:
        """[n] Request rows."""
        return self._state[_ROW, : len(self.requests)]

    @property
    def left(self) -> Int64:
        """[n] Output tokens still to come, at most."""
        return self._state[_LEFT, : len(self.requests)]

    def end_step(self, tokens: Int32) -> Int64 | None:
        """Append each column's new token; return the columns that reached their limit, ``None`` if none can."""
        count = len(self.requests)
        state = self._state[:, :count]
        self._history[state[_AT]] = tokens
        self._last[:count] = tokens
        state += _STEP
        self._slack -= 1
        if self._slack > 0:
            return None
        left = state[_LEFT]
        done = np.flatnonzero(left <= 0)
        waiting = left[left > 0]
        self._slack = int(waiting.min()) if len(waiting) else 0
        return done
