"""The arrays of the running batch: what a step knows of each request, one column a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from devicekit.scheduling.batch import Int32, Int64

# Rows of the 64-bit state; the first two advance by one in every step.
_SLOT, _AT, _CELL = range(3)
# Rows of the 32-bit state, and what a step adds to the first of them.
_POSITION, _LENGTH, _ROOM, _ROW, _LAST = range(5)
_STEP = (1, 1, -1)


class Cells(NamedTuple):
    """Every row of the state as a memoryview: one number at a time, that costs half of numpy."""

    slot: memoryview  # KV slot that the step writes
    at: memoryview  # flat index in the table's tokens where the step's token goes
    cell: memoryview  # flat index in the request table where the next page goes
    position: memoryview  # of the input token, which is the number of tokens whose KV is in the pool
    length: memoryview  # the input token included
    room: memoryview  # slots left in the last page, the input token's included
    row: memoryview  # request row
    last: memoryview  # input token


@dataclass(frozen=True, slots=True)
class View:
    """The first ``n`` columns."""

    tokens: Int32  # [n] as `Cells.last`, and so on
    positions: Int32  # [n]
    lengths: Int32  # [n]
    rows: Int32  # [n]
    room: Int32  # [n]
    slots: Int64  # [n]
    at: Int64  # [n]
    cell: Int64  # [n]
    numbers: Int64  # [n] of the columns
    advance_wide: Int64  # what a step adds one to
    advance_narrow: Int32  # what it adds `step` to
    step: Int32


class Columns:
    """Room for ``running`` requests, and for ``behind`` further tokens of a batch behind them."""

    def __init__(self, running: int, behind: int) -> None:
        self._wide: Int64 = np.zeros((_CELL + 1, running + behind), np.int64)
        self._narrow: Int32 = np.zeros((_LAST + 1, running + behind), np.int32)
        self._step: Int32 = np.repeat(np.array(_STEP, np.int32)[:, None], running, axis=1)
        self._numbers = np.arange(running)
        self._views: dict[int, View] = {}
        self.cells = Cells(*(row.data for row in self._wide), *(row.data for row in self._narrow))
        # All of them, [running + behind].
        self.slots = self._wide[_SLOT]
        self.tokens, self.positions = self._narrow[_LAST], self._narrow[_POSITION]
        self.lengths, self.rows = self._narrow[_LENGTH], self._narrow[_ROW]

    def view(self, count: int) -> View:
        """The first ``count`` columns, cut when first asked for."""
        return self._views.get(count) or self._views.setdefault(count, self._cut(count))

    def move(self, column: int, to: int) -> None:
        """Copy a column."""
        for cells in self.cells:
            cells[to] = cells[column]

    def _cut(self, count: int) -> View:
        wide, narrow = self._wide[:, :count], self._narrow[:, :count]
        return View(
            tokens=narrow[_LAST],
            positions=narrow[_POSITION],
            lengths=narrow[_LENGTH],
            rows=narrow[_ROW],
            room=narrow[_ROOM],
            slots=wide[_SLOT],
            at=wide[_AT],
            cell=wide[_CELL],
            numbers=self._numbers[:count],
            advance_wide=wide[:_CELL],
            advance_narrow=narrow[: len(_STEP)],
            step=self._step[:, :count],
        )
