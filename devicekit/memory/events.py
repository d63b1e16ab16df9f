"""What a router outside the process may know about the prefix cache: blocks stored, removed, all cleared.

A block is one page of tokens. Its hash is stable across processes and chained: it covers the namespace and
every token from the start up to the block's end, so equal hashes mean equal prefixes. Hashes are computed
only while a listener is attached, never on the way of a match.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from devicekit.memory import page_ids
from devicekit.memory.prefix_node import Root
from devicekit.ranges import whole

if TYPE_CHECKING:
    from devicekit.memory.prefix_node import Node

_WIDTH = 16  # bytes of one hash


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Consecutive blocks of one prefix entered the cache, below the block `parent` (None: from the start)."""

    hashes: tuple[bytes, ...]
    parent: bytes | None
    tokens: bytes  # int32, len(hashes) * page_size tokens
    page_size: int
    namespace: Hashable


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks left the cache, by the hashes they were stored under."""

    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """Every block left the cache at once."""


CacheEvent = BlocksStored | BlocksRemoved | CacheCleared
CacheListener = Callable[[CacheEvent], None]


class EventFeed:
    """Tells one listener what happens to the cache, and keeps the hashes it needs for that on the nodes."""

    __slots__ = ("_listener", "_page_size")

    def __init__(self, listener: CacheListener, page_size: int) -> None:
        whole("page_size", page_size, least=1)
        self._listener = listener
        self._page_size = page_size

    def stored(self, node: Node, first: int = 0) -> None:
        """`node` holds new pages from its page `first` on; its ancestors have been told before."""
        node.hashes = node.hashes[: first * _WIDTH]
        above = node.hashes or _hashes_above(node)
        parent = above[-_WIDTH:]
        page_bytes = self._page_size * page_ids.WIDTH
        tokens = node.key[first * page_bytes :]
        hashes: list[bytes] = []
        last = parent
        for at in range(0, len(tokens), page_bytes):
            last = blake2b(last + tokens[at : at + page_bytes], digest_size=_WIDTH).digest()
            hashes.append(last)
        node.hashes += b"".join(hashes)
        from_start = not first and isinstance(node.parent, Root)
        self._listener(
            BlocksStored(
                tuple(hashes), None if from_start else parent, tokens, self._page_size, _root(node).namespace
            )
        )

    def removed(self, node: Node, size: int) -> None:
        """The last `size` pages of `node` are about to leave."""
        cut = len(node.hashes) - size * _WIDTH
        gone, node.hashes = node.hashes[cut:], node.hashes[:cut]
        self._listener(BlocksRemoved(tuple(gone[at : at + _WIDTH] for at in range(0, len(gone), _WIDTH))))

    def cleared(self) -> None:
        """Everything left."""
        self._listener(CacheCleared())


def _hashes_above(node: Node) -> bytes:
    parent = node.parent
    if parent is None:
        raise ValueError("a root stores nothing")
    if isinstance(parent, Root):
        # Stable across processes as far as the namespace's repr is.
        return blake2b(repr(parent.namespace).encode(), digest_size=_WIDTH).digest()
    return parent.hashes


def _root(node: Node) -> Root:
    while node.parent is not None:
        node = node.parent
    if not isinstance(node, Root):
        raise ValueError("the node is not in a tree")
    return node
