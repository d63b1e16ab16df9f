"""The conservation audit: whether every page has exactly one owner. The answer is data; nothing raises.

For pages, with or without a prefix cache, and for request rows and state slots alike::

    audit(pool, owned=pages_of_running_requests, cache=cache)
    audit(table.rows, owned=rows_of_running_requests)

`owned` is either how many ids the callers hold outside the cache, or the ids themselves. Ids cost a sort and name
the ids that are wrong; a number costs nothing and only says that some are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from devicekit.memory import page_ids
from devicekit.memory.prefix_node import Node, Root

if TYPE_CHECKING:
    from devicekit.memory.pages import PagePool
    from devicekit.memory.prefix import PrefixCache

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TreeSanity:
    """The prefix tree recounted node by node, beside its own counters."""

    evictable: int  # pages counted by walking the tree
    protected: int
    evictable_counter: int  # what the cache believes
    protected_counter: int
    misfiled: int  # nodes under the wrong key, of broken size, or with a wrong parent
    mislocked: int  # nodes with fewer locks than locked children, or waiting for eviction while locked

    @property
    def sound(self) -> bool:
        """Whether counters and structure agree."""
        return (
            self.evictable == self.evictable_counter
            and self.protected == self.protected_counter
            and not self.misfiled
            and not self.mislocked
        )


@dataclass(frozen=True, slots=True)
class Conservation:
    """Where every page is: available + evictable + protected + owned == total."""

    available: int
    evictable: int
    protected: int
    owned: int
    total: int
    leaked: tuple[int, ...] | None  # ids that nobody has; None: not looked for
    doubled: tuple[int, ...] | None  # ids that are in more than one place, or outside 1..total
    tree: TreeSanity | None  # None: no prefix cache

    @property
    def difference(self) -> int:
        """Pages that are in no term (positive) or in two (negative)."""
        return self.total - self.available - self.evictable - self.protected - self.owned

    @property
    def balanced(self) -> bool:
        """Whether every id is accounted for, as far as was checked."""
        return (
            not self.difference
            and not self.leaked
            and not self.doubled
            and (self.tree is None or self.tree.sound)
        )


def audit(
    allocator: PagePool, *, owned: int | bytes | Int32 = 0, cache: PrefixCache | None = None
) -> Conservation:
    """Account for every id of `allocator`; `owned` ids are those held outside `cache`."""
    leaked: tuple[int, ...] | None = None
    doubled: tuple[int, ...] | None = None
    if isinstance(owned, int):
        count = owned
    else:
        held = np.frombuffer(owned, np.int32) if isinstance(owned, bytes) else owned
        count = len(held)
        leaked, doubled = _misplaced(allocator, held, cache)
    return Conservation(
        available=allocator.num_pages - allocator.in_use,
        evictable=cache.evictable if cache else 0,
        protected=cache.protected if cache else 0,
        owned=count,
        total=allocator.num_pages,
        leaked=leaked,
        doubled=doubled,
        tree=None if cache is None else inspect_tree(cache),
    )


def inspect_tree(cache: PrefixCache) -> TreeSanity:
    """Recount the prefix tree. Walks all of it."""
    sizes = [0, 0]
    misfiled = mislocked = 0
    page_bytes = cache.page_size * page_ids.WIDTH
    for node in cache.nodes():
        sizes[node.locks > 0] += node.size
        misfiled += not _well_filed(node, page_bytes)
        locked_children = sum(child.locks > 0 for child in node.children.values())
        waits = node.queue is not None and node in node.queue
        mislocked += node.locks < locked_children or waits == (node.locks > 0)
    return TreeSanity(sizes[0], sizes[1], cache.evictable, cache.protected, misfiled, mislocked)


def _well_filed(node: Node, page_bytes: int) -> bool:
    parent = node.parent
    return (
        parent is not None
        and parent.children.get(node.key[:page_bytes]) is node
        and len(node.key) == node.size * page_bytes > 0
        and not isinstance(node, Root)
    )


def _misplaced(
    allocator: PagePool, held: Int32, cache: PrefixCache | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    cached = b"".join([node.pages for node in cache.nodes()]) if cache else b""
    everywhere = np.concatenate((allocator.free_pages(), held, np.frombuffer(cached, np.int32)))
    ids, counts = np.unique(everywhere, return_counts=True)
    total = allocator.num_pages
    leaked = np.setdiff1d(np.arange(1, total + 1, dtype=np.int32), ids)
    doubled = ids[(counts > 1) | (ids < 1) | (ids > total)]
    return tuple(leaked.tolist()), tuple(doubled.tolist())
