"""What a question between ranks looks like: a line of numbers from each, on a table that all can read."""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt
import torch

from devicekit.scheduling.batch import Int32, Int64

_KIND, _TIME, _DIGEST, _VALUES, _WIDTH = 0, 1, 2, 3, 6


class Question(enum.IntEnum):
    """What the ranks are speaking about. Two ranks that speak of different things have gone different ways."""

    STEP = 1
    PASS = 2
    ANSWER = 3
    LEAST = 4
    READY = 5
    FIRST = 6
    TEXT = 7
    END = 8
    PREPARED = 9


class Table:
    """The buffers of a question: a line of mine, and a line of everybody's.

    Args:
        ranks: how many there are.
        tokens: how many a line has room for. Every line is as wide: no message can meet another size.
    """

    def __init__(self, ranks: int, tokens: int = 0) -> None:
        self.input = torch.zeros(_WIDTH + tokens, dtype=torch.int64)
        everybody = torch.zeros((ranks, _WIDTH + tokens), dtype=torch.int64)
        self.outputs = list(everybody.unbind())
        self._mine: npt.NDArray[np.int64] = self.input.numpy()
        self._everybody: npt.NDArray[np.int64] = everybody.numpy()

    def write(
        self, question: Question, values: tuple[int, ...], *, digest: int, tokens: Int32 | None, time: float
    ) -> None:
        """Fill my line: at most three values, and as many tokens as there is room for."""
        mine = self._mine
        mine[_KIND], mine[_DIGEST] = question, digest
        mine[_TIME : _TIME + 1].view(np.float64)[0] = time
        mine[_VALUES : _VALUES + len(values)] = values
        if tokens is not None:
            mine[_WIDTH : _WIDTH + len(tokens)] = tokens

    @property
    def first_time(self) -> float:
        """Rank 0's, in seconds of its clock."""
        return float(self._everybody[0, _TIME : _TIME + 1].view(np.float64)[0])

    @property
    def values(self) -> Int64:
        """Per rank a row of three values, and then tokens. Good until the next question."""
        return self._everybody[:, _VALUES:]

    def astray(self) -> list[int]:
        """Ranks that spoke of something else than rank 0, or have another digest of it."""
        said = self._everybody[:, (_KIND, _DIGEST)]
        if (said == said[0]).all():  # so it is in every step
            return []
        astray: list[int] = np.flatnonzero((said != said[0]).any(axis=1)).tolist()
        return astray
