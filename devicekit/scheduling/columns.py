"""The arrays of the running batch: what a step knows of each request, one column a request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from devicekit.memory.cells import flat
from devicekit.scheduling.batch import Int32, Int64

# Rows of the 64-bit state; the first two advance by one in every step.
_SLOT, _TOKEN_CELL, _PAGE_CELL = range(3)
# Rows of the 32-bit state, and what a step adds to the first of them.
_POSITION, _LENGTH, _ROOM, _ROW, _TOKEN = range(5)
_STEP = (1, 1, -1)


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of every column, to be read and written one number at a time."""

    slot: memoryview  # KV slot that the step writes
    token_cell: memoryview  # where in the table's tokens, counted through all rows, the step's token goes
    page_cell: memoryview  # where in the table's pages, counted through all rows, the next page goes
    position: memoryview  # of the input token, which is the number of tokens whose KV is in the pool
    length: memoryview  # the input token included
    room: memoryview  # slots left in the last page, the input token's included
    row: memoryview  # request row
    token: memoryview  # input token


@dataclass(frozen=True, slots=True)
class View:
    """The first ``n`` columns as arrays; see `Cells` for what each one holds."""

    tokens: Int32  # [n]
    positions: Int32  # [n]
    lengths: Int32  # [n]
    rows: Int32  # [n]
    room: Int32  # [n]
    slots: Int64  # [n]
    token_cells: Int64  # [n]
    page_cells: Int64  # [n]
    numbers: Int64  # [n] of the columns
    advancing_wide: Int64  # [2, n] what a step adds one to
    advancing_narrow: Int32  # [3, n] what it adds `step` to
    step: Int32  # [3, n]


class Columns:
    """Room for ``running`` requests, and for ``behind`` further tokens of a batch behind them."""

    def __init__(self, running: int, behind: int) -> None:
        self._wide: Int64 = np.zeros((_PAGE_CELL + 1, running + behind), np.int64)
        self._narrow: Int32 = np.zeros((_TOKEN + 1, running + behind), np.int32)
        self._step: Int32 = np.repeat(np.array(_STEP, np.int32)[:, None], running, axis=1)
        self._numbers = np.arange(running)
        self._views: dict[int, View] = {}
        self._all_cells = (*map(flat, self._wide), *map(flat, self._narrow))
        self.cells = Cells(*self._all_cells)
        # All of them, [running + behind].
        self.slots = self._wide[_SLOT]
        self.tokens, self.positions = self._narrow[_TOKEN], self._narrow[_POSITION]
        self.lengths, self.rows = self._narrow[_LENGTH], self._narrow[_ROW]

    def view(self, count: int) -> View:
        """The first ``count`` columns, cut when first asked for."""
        return self._views.get(count) or self._views.setdefault(count, self._cut(count))

    def move(self, column: int, to: int) -> None:
        """Copy a column."""
        for cells in self._all_cells:
            cells[to] = cells[column]

    def _cut(self, count: int) -> View:
        wide, narrow = self._wide[:, :count], self._narrow[:, :count]
        return View(
            tokens=narrow[_TOKEN],
            positions=narrow[_POSITION],
            lengths=narrow[_LENGTH],
            rows=narrow[_ROW],
            room=narrow[_ROOM],
            slots=wide[_SLOT],
            token_cells=wide[_TOKEN_CELL],
            page_cells=wide[_PAGE_CELL],
            numbers=self._numbers[:count],
            advancing_wide=wide[:_PAGE_CELL],
            advancing_narrow=narrow[: len(_STEP)],
            step=self._step[:, :count],
        )
