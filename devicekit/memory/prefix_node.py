"""A node of the prefix tree: a run of whole pages, the tokens they hold, and who is below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from devicekit.memory import page_ids

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Hashable


class Node:
    """One edge of the tree and the node at its end; opaque to users of the cache.

    `key` is the edge's tokens (int32 bytes, whole pages), `pages` the ids of the pages that hold them.
    `children` are found by the bytes of their first page. `locks` counts the holders of this very node
    plus the children that are locked themselves, so a node is locked whenever anything below it is.
    `queue` is where an unlocked node waits for eviction, None while it is locked.
    """

    __slots__ = ("children", "hashes", "key", "locks", "pages", "parent", "queue", "rank")

    def __init__(self, parent: Node | None, key: bytes, pages: bytes, rank: int) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.rank = rank
        self.locks = 0
        self.children: dict[bytes, Node] = {}
        self.queue: OrderedDict[Node, None] | None = None
        self.hashes = b""  # content hashes of the pages, filled only for a listener

    @property
    def size(self) -> int:
        """Pages on this edge."""
        return page_ids.count(self.pages)

    def split(self, size: int, page_bytes: int) -> Node:
        """Cut this edge after `size` pages; the new node above gets the head, this one keeps the tail.

        Whoever holds this node still holds the whole prefix: it stays the deeper of the two.
        """
        cut, parent = size * page_bytes, self.parent
        if parent is None:
            raise ValueError("a root has no edge to cut")
        head = Node(parent, self.key[:cut], page_ids.first(self.pages, size), self.rank)
        head.locks = 1 if self.locks else 0
        if self.hashes:
            width = len(self.hashes) // self.size * size
            head.hashes, self.hashes = self.hashes[:width], self.hashes[width:]
        parent.children[self.key[:page_bytes]] = head
        self.parent, self.key, self.pages = head, self.key[cut:], page_ids.behind(self.pages, size)
        head.children[self.key[:page_bytes]] = self
        return head


class Root(Node):
    """The top of one namespace: no pages, and a lock of its own so that it never waits for eviction."""

    __slots__ = ("namespace",)

    def __init__(self, namespace: Hashable) -> None:
        super().__init__(None, b"", b"", 0)
        self.namespace = namespace
        self.locks = 1


def common_pages(edge: bytes, key: bytes | memoryview, at: int, page_bytes: int) -> int:
    """How many whole pages of `edge` equal `key` from byte `at` on."""
    count = min(len(edge), len(key) - at) // page_ids.WIDTH
    differs = page_ids.as_array(edge, count) != np.frombuffer(key, np.int32, count, at)
    same = int(differs.argmax())
    # argmax of an all-False array is 0 as well.
    return (same if count and differs[same] else count) * page_ids.WIDTH // page_bytes
