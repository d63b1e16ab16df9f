"""One rank's part of a model: what is cut and how, and the exchange of tensors with the other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from devicekit.runners.cuts import Cut


class Exchange(Protocol):
    """Exchanges tensors between ranks. Every rank makes the same calls in the same order."""

    def sum(self, tensor: torch.Tensor) -> None:
        """Add up the contiguous tensors of all ranks, in place."""
        ...

    def gather(self, part: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The tensor of every rank, of known shapes."""
        ...


class Alone:
    """An exchange without other ranks: results have the right shapes, and no meaning."""

    def sum(self, tensor: torch.Tensor) -> None:
        """Add nothing."""

    def gather(self, part: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [part.new_zeros(tuple(shape)) for shape in shapes]


@dataclass(frozen=True, slots=True)
class Split:
    """How a model is to be split.

    Args:
        experts: whole experts on each rank, instead of a part of every expert.
        partly: split also a model whose plan leaves its attention whole.
    """

    ranks: int
    rank: int = 0
    experts: bool = False
    partly: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a model one rank holds. Each pair is: on this rank, and in the whole model."""

    ranks: int
    held: int  # bytes of weights
    all: int
    query_heads: tuple[int, int]
    kv_heads: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"each of {self.ranks} ranks holds {self.held} of {self.all} bytes of weights, "
            f"{self.query_heads[0]} of {self.query_heads[1]} query heads and {self.kv_heads[0]} of "
            f"{self.kv_heads[1]} key heads"
        )


@dataclass(slots=True)
class Sharding:
    """What one rank holds of a model's weights; a weight that is not cut is whole on every rank."""

    split: Split
    cuts: Mapping[str, Cut] = field(default_factory=dict)  # by every name of a parameter
    exchange: Exchange = field(default_factory=Alone)

    def whole_shape(self, name: str, part: Sequence[int]) -> tuple[int, ...]:
        """The shape of the whole weight whose part here has the shape ``part``."""
        shape = list(part)
        if (cut := self.cuts.get(name)) is not None:
            shape[cut.dim] = cut.size
        return tuple(shape)

    def shard(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a weight; a view where it can be one."""
        cut = self.cuts.get(name)
        return whole if cut is None else cut.part(whole, self.split.rank)

    def whole(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """The whole weight whose part is here. Every rank asks for the same."""
        cut = self.cuts.get(name)
        return part if cut is None else cut.assemble(self.gather(cut, part))

    def gather(self, cut: Cut, part: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's part."""
        shapes = []
        for rank in range(self.split.ranks):
            shape = list(part.shape)
            shape[cut.dim] = cut.length(rank)
            shapes.append(shape)
        return self.exchange.gather(part.contiguous(), shapes)
