"""Cheap ways to touch few numbers of large arrays: the only place for what is written for speed alone.

What it gives, as CPU time against plain numpy (``python -m bench scheduler``): numpy takes some
200 ns to make a view or to convert a number, whatever the size, and a step with requests that come and go does so
hundreds of times.

- Rows of int32 through a memoryview (`Rows`): a third of the time of slicing the array, for up to some fifty
  numbers. A churn step is 15 % cheaper.
- Numbers that are arrays already (`ZERO`, `ONE`): a comparison or addition is 100 ns cheaper. A decode step is 5 %
  cheaper.
- Single numbers through a memoryview (`flat`): a third of indexing the array. Up to some dozen columns (`FEW`) are
  cheaper to change one by one so than by seven vector operations: 1.5 us of a decode step with 64 running.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from devicekit.memory.page_ids import WIDTH, PageIds

Int32 = npt.NDArray[np.int32]

ZERO: npt.NDArray[np.int32] = np.array(0, np.int32)
FEW = 12  # numbers
ONE: npt.NDArray[np.int64] = np.array(1, np.int64)


def flat(array: npt.NDArray[Any]) -> memoryview:
    """A contiguous array's own memory as one row of numbers, to be read and written one by one."""
    return array.reshape(-1).data


class Rows:
    """The rows of a contiguous int32 matrix ``[rows, width]``, read and written piece by piece."""

    __slots__ = ("_bytes", "_cells", "_width")

    def __init__(self, matrix: Int32) -> None:
        self._width = matrix.shape[1]
        self._cells = flat(matrix)
        # A view with a zero in its shape cannot be cast.
        self._bytes = self._cells.cast("B") if matrix.size else memoryview(bytearray())

    def write(self, row: int, start: int, ids: bytes) -> None:
        """Put ids in a row, from ``start`` on."""
        at = (row * self._width + start) * WIDTH
        self._bytes[at : at + len(ids)] = ids

    def write_array(self, row: int, values: Int32) -> None:
        """Put a contiguous array at the beginning of a row."""
        at = row * self._width
        self._cells[at : at + len(values)] = values.data

    def ids(self, row: int, start: int, end: int) -> PageIds:
        """A piece of a row, as bytes."""
        at = row * self._width
        return PageIds(self._cells[at + start : at + end].tobytes())

    def numbers(self, row: int, start: int, end: int) -> tuple[int, ...]:
        """A piece of a row."""
        return _reader(end - start)(self._cells, (row * self._width + start) * WIDTH)


@lru_cache(maxsize=4096)
def _reader(count: int) -> Callable[[memoryview, int], tuple[int, ...]]:
    """A function that reads ``count`` int32 at an offset in bytes, as a tuple."""
    return Struct(f"{count}i").unpack_from
