"""Which part of a tensor each rank holds, and how to get from a whole to the parts and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Runs = tuple[tuple[int, int], ...]
"""Indices ``start`` to ``end - 1`` of one dimension, in this order."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor that is cut along a dimension of ``size``. Ranks may hold the same rows."""

    dim: int  # from the front
    size: int
    runs: tuple[Runs, ...]  # of each rank

    def length(self, rank: int) -> int:
        """Length of a rank's part along the dimension."""
        return sum(end - start for start, end in self.runs[rank])

    def part(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """A rank's part: a view if it is one run of rows, otherwise a copy."""
        pieces = [whole.narrow(self.dim, start, end - start) for start, end in self.runs[rank]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.dim)

    def assemble(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The whole from every rank's part."""
        shape = list(parts[0].shape)
        shape[self.dim] = self.size
        whole = parts[0].new_empty(shape)
        for runs, part in zip(self.runs, parts, strict=True):
            at = 0
            for start, end in runs:
                whole.narrow(self.dim, start, end - start).copy_(part.narrow(self.dim, at, end - start))
                at += end - start
        return whole


def even(dim: int, size: int, ranks: int) -> Cut:
    """One run for each rank, of equal length but for the last ones."""
    step = -(-size // ranks)
    return Cut(dim, size, tuple(((min(r * step, size), min((r + 1) * step, size)),) for r in range(ranks)))


def packed(dim: int, size: int, ranks: int, blocks: int) -> Cut:
    """An even part of each of ``blocks`` blocks in a row. ``ranks * blocks`` divides ``size``."""
    block, step = size // blocks, size // blocks // ranks
    return Cut(
        dim,
        size,
        tuple(
            tuple((b * block + r * step, b * block + (r + 1) * step) for b in range(blocks))
            for r in range(ranks)
        ),
    )


def kv_heads(dim: int, size: int, ranks: int, heads: int, kv: int) -> Cut:
    """The key or value heads that each rank's query heads read, each as often as it is needed there.

    ``heads`` query heads share ``kv`` heads evenly, and ``ranks`` divides ``heads``. On a rank every key head
    again serves equally many query heads: one that would serve more is there more than once.
    """
    group, local = heads // kv, heads // ranks
    block = math.gcd(group, local)
    width = size // kv
    runs: list[Runs] = []
    for rank in range(ranks):
        chosen = [(rank * local + at) // group for at in range(0, local, block)]
        runs.append(_joined([(one * width, (one + 1) * width) for one in chosen]))
    return Cut(dim, size, tuple(runs))


def _joined(runs: Sequence[tuple[int, int]]) -> Runs:
    joined: list[tuple[int, int]] = []
    for start, end in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return tuple(joined)
