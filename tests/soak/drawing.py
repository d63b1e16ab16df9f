"""Where random choices come from: dice that repeat themselves by a number, or whatever else can choose."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Draw(Protocol):
    """Chooses. The same choices in the same order make the same run."""

    def pick(self, choices: Sequence[_T]) -> _T:
        """One of these; what stands there twice comes twice as often."""
        ...

    def number(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        ...


class Dice:
    """Thrown by a generator of its own, which a seed repeats."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def pick(self, choices: Sequence[_T]) -> _T:
        return choices[int(self._random() * len(choices))]

    def number(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))
