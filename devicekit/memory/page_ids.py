"""Page ids kept as bytes: native int32, so that they join, cut and hash as they are, whatever holds them.

`PageIds` is the type, and only this module knows how wide an id is. Tokens are int32 too: what counts and cuts ids
does the same for them.
"""

from __future__ import annotations

from typing import NewType

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]

PageIds = NewType("PageIds", bytes)

WIDTH = 4  # bytes of an id, or of a token
NO_PAGES = PageIds(b"")


def count(ids: bytes) -> int:
    """How many there are."""
    return len(ids) // WIDTH


def first(ids: bytes, number: int) -> PageIds:
    """The first ``number`` of them."""
    return PageIds(ids[: number * WIDTH])


def behind(ids: bytes, number: int) -> PageIds:
    """All but the first ``number``."""
    return PageIds(ids[number * WIDTH :])


def last(ids: bytes, number: int) -> PageIds:
    """The last ``number``, of at least one."""
    return PageIds(ids[-number * WIDTH :])


def without_last(ids: bytes, number: int) -> PageIds:
    """All but the last ``number``, of at least one."""
    return PageIds(ids[: -number * WIDTH])


def numbers(ids: bytes) -> list[int]:
    """The ids as integers."""
    return memoryview(ids).cast("i").tolist()


def as_array(ids: bytes, number: int = -1) -> Int32:
    """The ids, or the first ``number`` of them, as an array that is to be read only."""
    return np.frombuffer(ids, np.int32, number)
