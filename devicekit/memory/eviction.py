"""Which cached prefix goes first: the eviction policies, and the order in which unlocked nodes wait.

Only the front of that order is ever looked at, so evicting costs the same whatever the cache holds. No search is
needed to find a node without children either: nodes are released children first, and no policy ranks a node below
its descendants. Both hold for every policy here; a policy of your own must keep the second.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devicekit.memory.errors import UnknownPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from devicekit.memory.prefix_node import Node


@dataclass(frozen=True, slots=True)
class EvictionPolicy:
    """Nodes of the lowest rank go first; among equals, the one released longest ago.

    `enter(turn, priority)` ranks what an insertion adds, where `turn` counts insertions; every node above
    is raised to at least that rank. `hit(rank)` is the new rank of each node that a match passes through
    and must not fall, nor put a lower rank above a higher one.
    """

    enter: Callable[[int, int], int]
    hit: Callable[[int], int]


def _same(rank: int) -> int:
    return rank


POLICIES: dict[str, EvictionPolicy] = {
    # Least recently matched, inserted or released.
    "lru": EvictionPolicy(enter=lambda turn, priority: 0, hit=_same),
    # Fewest matches.
    "lfu": EvictionPolicy(enter=lambda turn, priority: 1, hit=lambda rank: rank + 1),
    # Oldest insertion; a match does not make it younger.
    "fifo": EvictionPolicy(enter=lambda turn, priority: turn, hit=_same),
    # Lowest priority of any request that inserted it or something below it.
    "priority": EvictionPolicy(enter=lambda turn, priority: priority, hit=_same),
    # What was never matched before what was: one long scan cannot push out shared prefixes.
    "slru": EvictionPolicy(enter=lambda turn, priority: 0, hit=lambda rank: 1),
}


def find_policy(policy: str | EvictionPolicy) -> EvictionPolicy:
    """The policy of that name; raises `UnknownPolicy`."""
    if isinstance(policy, EvictionPolicy):
        return policy
    try:
        return POLICIES[policy]
    except KeyError:
        raise UnknownPolicy(policy, tuple(POLICIES)) from None


class ReleaseOrder:
    """Unlocked nodes, the one released longest ago first: all that LRU needs."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: OrderedDict[Node, None] = OrderedDict()

    def add(self, node: Node) -> None:
        """Put a node last, behind its children."""
        queue = self._queue
        queue[node] = None
        node.queue = queue

    def first(self) -> Node | None:
        """The node to evict next; it has no children."""
        for node in self._queue:
            return node
        return None


class RankedOrder(ReleaseOrder):
    """Unlocked nodes, lowest rank first, within a rank the one released longest ago first."""

    __slots__ = ("_limit", "_queues", "_ranks")

    def __init__(self) -> None:
        self._queues: dict[int, OrderedDict[Node, None]] = {}
        self._ranks: list[int] = []  # heap of the keys of _queues
        self._limit = 64

    def add(self, node: Node) -> None:
        rank = node.rank
        queue = self._queues.get(rank)
        if queue is None:
            if len(self._queues) > self._limit:
                self._drop_empty()
            queue = self._queues[rank] = OrderedDict()
            heapq.heappush(self._ranks, rank)
        queue[node] = None
        node.queue = queue

    def first(self) -> Node | None:
        while self._ranks:
            for node in self._queues[self._ranks[0]]:
                return node
            del self._queues[heapq.heappop(self._ranks)]
        return None

    def _drop_empty(self) -> None:
        # A queue empties without notice when its nodes are locked. Doubling the limit makes this free on
        # average.
        self._queues = {rank: queue for rank, queue in self._queues.items() if queue}
        self._ranks = sorted(self._queues)
        self._limit = 64 + 2 * len(self._queues)


def order_for(policy: EvictionPolicy) -> ReleaseOrder:
    """An empty order for this policy."""
    return ReleaseOrder() if policy is POLICIES["lru"] else RankedOrder()
