"""Records that the prefix cache answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit.memory.prefix_node import Node


@dataclass(slots=True)  # not frozen: building one is most of what a short match costs
class Match:
    """The longest cached prefix: its pages (int32 bytes), its length in tokens, and the node to lock."""

    pages: bytes
    tokens: int
    node: Node


@dataclass(slots=True)
class Insertion:
    """The pages that now hold the inserted prefix, those given that do not, and the node at its end."""

    pages: bytes
    duplicates: bytes
    node: Node


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Counts since the cache was built."""

    queries: int
    queried_tokens: int
    hit_tokens: int
    inserted_pages: int
    evicted_pages: int

    @property
    def hit_rate(self) -> float | None:
        """Share of the queried tokens that were cached; None before the first query."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else None
