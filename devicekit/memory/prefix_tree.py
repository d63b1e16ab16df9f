"""The tree under the prefix cache: following, growing, locking and removing nodes, and their counts.

Two facts hold after every call. A node's ancestors are locked whenever it is. An unlocked node stands in the
eviction order behind all its descendants, so the front of the order is a leaf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.memory import page_ids
from devicekit.memory.errors import StaleNode
from devicekit.memory.eviction import POLICIES, EvictionPolicy, ReleaseOrder, order_for
from devicekit.memory.prefix_node import Node, Root, common_pages

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from devicekit.memory.events import EventFeed

_MAX_EDGE = 1 << 16  # bytes of tokens on one edge: bounds what growing or trimming a leaf copies


class PrefixTree:
    """Nodes of every namespace, the order they are evicted in, and how many pages are locked.

    `evictable` and `protected` (locked) count pages; both are plain attributes, to be read only.
    """

    def __init__(self, page_size: int, policy: EvictionPolicy) -> None:
        self.page_size = page_size
        self.evictable = 0
        self.protected = 0
        self._page_bytes = page_size * page_ids.WIDTH
        self._max_edge = max(1, _MAX_EDGE // self._page_bytes) * self._page_bytes
        self._policy = policy
        self._ranked = policy is not POLICIES["lru"]
        self._order: ReleaseOrder = order_for(policy)
        self._roots: dict[Hashable, Root] = {}
        self._feed: EventFeed | None = None

    @property
    def total(self) -> int:
        """Pages in the cache."""
        return self.evictable + self.protected

    @property
    def namespaces(self) -> int:
        """Namespaces that hold pages."""
        return len(self._roots)

    def lock(self, node: Node) -> None:
        """Keep the prefix that ends at `node` from being evicted. Locks are counted."""
        while not node.locks:
            queue, parent = node.queue, node.parent
            if queue is None or parent is None:
                raise StaleNode(
                    "this prefix has left the cache: lock a match before anything else changes it"
                )
            del queue[node]
            node.queue = None
            node.locks = 1
            size = page_ids.count(node.pages)
            self.protected += size
            self.evictable -= size
            node = parent
        node.locks += 1

    def unlock(self, node: Node) -> None:
        """Undo one `lock`."""
        locks, parent = node.locks, node.parent
        if locks < 1 or (locks == 1 and parent is None):
            raise StaleNode("this prefix is not locked: it was unlocked more often than locked")
        while locks == 1 and parent is not None:
            node.locks = 0
            size = page_ids.count(node.pages)
            self.protected -= size
            self.evictable += size
            self._order.add(node)
            node = parent
            locks, parent = node.locks, node.parent
        node.locks = locks - 1

    def nodes(self) -> Iterator[Node]:
        """Every node, parents before children. For audits: the whole tree is walked."""
        waiting: list[Node] = list(self._roots.values())
        while waiting:
            node = waiting.pop()
            if node.parent is not None:
                yield node
            waiting += node.children.values()

    def _descend(self, node: Node, key: bytes) -> tuple[Node, int, bytes]:
        """Follow `key` as far as it is known, splitting an edge where it departs: node, bytes of key, pages."""
        page, at = self._page_bytes, 0
        parts: list[bytes] = []
        while (child := node.children.get(key[at : at + page])) is not None:
            edge = child.key
            if not key.startswith(edge, at):
                node = child.split(common_pages(edge, key, at, page), page)
                if not node.locks:
                    self._order.add(node)
                at += len(node.key)
                parts.append(node.pages)
                break
            node = child
            at += len(edge)
            parts.append(child.pages)
        return node, at, b"".join(parts)

    def _climb(self, node: Node, pages: int) -> Node:
        """The node that ends so many pages before this one, splitting an edge where there is none."""
        while pages and pages >= node.size and node.parent is not None:
            pages -= node.size
            node = node.parent
        if pages:
            node = node.split(node.size - pages, self._page_bytes)
            if not node.locks:
                self._order.add(node)
        return node

    def _add(self, node: Node, key: bytes, pages: bytes, held: bool, rank: int) -> Node:
        """Add pages below `node`; the node at the end. With `held`, the caller's lock on `node` moves there."""
        size = page_ids.count(pages)
        if held:
            self.protected += size
        else:
            self.evictable += size
        most = self._max_edge
        if (  # a leaf, and nobody else holds it: its own edge can grow
            not node.children
            and node.locks == held
            and node.rank <= rank
            and node.parent is not None
            and len(node.key) + len(key) <= most
        ):
            node.key += key
            node.pages += pages
            if self._feed is not None:
                self._feed.stored(node, node.size - size)
            return node
        page = self._page_bytes
        for cut in range(0, len(key), most):
            edge = key[cut : cut + most]
            child = Node(
                node, edge, page_ids.first(page_ids.behind(pages, cut // page), len(edge) // page), rank
            )
            node.children[edge[:page]] = child
            if held:
                child.locks = 1  # the caller's; what it had on the node above now stands for this child's
            else:
                self._order.add(child)
            if self._feed is not None:
                self._feed.stored(child)
            node = child
        return node

    def _remove(self, node: Node) -> None:
        """Take an unlocked leaf out of the tree; a namespace without pages goes with its last leaf."""
        queue, parent = node.queue, node.parent
        if queue is None or parent is None:
            raise StaleNode("this prefix has left the cache already")
        del queue[node]
        del parent.children[node.key[: self._page_bytes]]
        node.queue = node.parent = None
        if not parent.children and isinstance(parent, Root) and self._roots.get(parent.namespace) is parent:
            del self._roots[parent.namespace]

    def _touch(self, node: Node) -> None:
        """Move the unlocked path above and including `node` to the back of the order, deepest first."""
        while (queue := node.queue) is not None and node.parent is not None:
            queue.move_to_end(node)
            node = node.parent

    def _hit_path(self, node: Node) -> None:
        """Rank every node of the path after a match."""
        hit = self._policy.hit
        while node.parent is not None:
            self._requeue(node, hit(node.rank))
            node = node.parent

    def _raise_path(self, node: Node, rank: int) -> None:
        """Rank every node of the path at least `rank`."""
        while node.parent is not None:
            self._requeue(node, max(node.rank, rank))
            node = node.parent

    def _requeue(self, node: Node, rank: int) -> None:
        node.rank = rank
        if node.queue is not None:
            del node.queue[node]
            self._order.add(node)
