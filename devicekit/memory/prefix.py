"""The prefix cache: finds the pages of a prompt that an earlier request already computed.

Life of a request, in the calls it makes. `row` is its page ids so far, as int32 bytes; `shared` is how many
*bytes* at the front of `row` belong to the cache. Everything behind belongs to the request.

Admit: find what is cached and keep it from being evicted. Leave the last token out: a model must run at
least one token to say what comes next. ::

    match = cache.hold(prompt[:-1], namespace)
    held, row, shared = match.node, match.pages, len(match.pages)
    own = pool.take(missing)
    if own is None:
        cache.evict(missing - pool.available)   # pages freed; take again, or unlock and wait
    row += own

Publish, after prefill and again at any later time: share the pages that are full by now. `tokens` are all
those whose keys and values are written, from the start (never the token just sampled, never fewer than
published before); a page that is not full is left alone. ::

    done = cache.insert(tokens, row, namespace, held=held)
    pool.give(done.duplicates)
    held, row, shared = done.node, done.pages + row[len(done.pages):], len(done.pages)

(`extend` does the same from what follows `shared`, and so does not look at the beginning again.)

Where `duplicates` is not empty, someone published the same tokens first and `done.pages` are theirs: the
request's line in the request table changes with `row`.

Finish: publish, then ::

    pool.give(row[shared:])
    cache.unlock(held)

Abort or retract: the last two lines without publishing. Nothing else is needed in any case.

Ownership: `insert` moves every given page into the cache, except `duplicates`, which stay the caller's to
give back, and pages behind the last full one, which it does not look at. Pages in the cache are never
written: a request writes only behind `shared`, and what is shared is always whole pages. `evict` and `reset`
give the cache's pages back to the allocator themselves.

A `Match` is good until the next call that changes the cache: lock its node at once. A namespace (tenant,
adapter, weight version: anything hashable) sees only prefixes inserted under an equal one. Tokens are
int32, as an array or as its bytes; comparison is exact, on the tokens themselves.

Cost does not depend on what the cache holds: matching and inserting follow the number of places where known
prompts part along the way, evicting and resetting not even that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from devicekit.memory import page_ids
from devicekit.memory.errors import CacheInUse
from devicekit.memory.events import CacheListener, EventFeed
from devicekit.memory.eviction import POLICIES, EvictionPolicy, ReleaseOrder, find_policy, order_for
from devicekit.memory.prefix_node import Node, Root, common_pages
from devicekit.memory.prefix_records import Insertion, Match, PrefixStats
from devicekit.memory.prefix_tree import PrefixTree
from devicekit.ranges import whole

if TYPE_CHECKING:
    from collections.abc import Hashable

    from devicekit.memory.pages import PagePool

Int32Data = bytes | npt.NDArray[np.int32]

_RECLAIM = 64  # nodes of a cache that was reset, let go of at each insertion


class PrefixCache(PrefixTree):
    """A radix tree over token bytes, in whole pages of `page_size` tokens; see the module for its use.

    `policy` is lru, lfu, fifo, priority, slru, or an `EvictionPolicy`; `UnknownPolicy` otherwise. A `page_size`
    below 1 is a ValueError. `by_priority` says whether the priority of an insertion counts, even of one that adds
    nothing.
    """

    def __init__(self, allocator: PagePool, page_size: int, *, policy: str | EvictionPolicy = "lru") -> None:
        whole("page_size", page_size, least=1)
        super().__init__(page_size, find_policy(policy))
        self.allocator = allocator
        self.by_priority = self._policy is POLICIES["priority"]
        self._nowhere = Root(None)  # where a match in an unknown namespace ends
        self._retired: list[ReleaseOrder] = []  # of caches that were reset, to be taken apart bit by bit
        self._turn = 0
        self._queries = self._queried_bytes = self._hit_bytes = 0
        self._evicted = self._forgotten = 0

    @property
    def stats(self) -> PrefixStats:
        """What was asked, found, inserted and evicted so far."""
        return PrefixStats(
            queries=self._queries,
            queried_tokens=self._queried_bytes // page_ids.WIDTH,
            hit_tokens=self._hit_bytes // page_ids.WIDTH,
            inserted_pages=self.total + self._evicted + self._forgotten,
            evicted_pages=self._evicted,
        )

    def match(self, tokens: Int32Data, namespace: Hashable = None) -> Match:
        """The longest cached prefix of `tokens`, in whole pages. Counts as a use of it."""
        found = self._find(tokens, namespace)
        if not self._ranked:
            self._touch(found.node)
        return found

    def hold(self, tokens: Int32Data, namespace: Hashable = None) -> Match:
        """`match`, and `lock` what was found."""
        found = self._find(tokens, namespace)
        node = found.node
        if node.locks:  # as so often: somebody runs who began with the same
            node.locks += 1
        else:
            self.lock(node)
        return found

    def _find(self, tokens: Int32Data, namespace: Hashable) -> Match:
        key = tokens if type(tokens) is bytes else _as_bytes(tokens)
        node, at, pages = self._descend(self._roots.get(namespace, self._nowhere), key)
        self._queries += 1
        self._queried_bytes += len(key)
        self._hit_bytes += at
        if self._ranked:
            self._hit_path(node)
        return Match(pages, at // page_ids.WIDTH, node)

    def shorten(self, match: Match, pages: int) -> Match:
        """The first `pages` pages of a match that has just been made, for callers that can use no more of it."""
        excess = page_ids.count(match.pages) - pages
        self._hit_bytes -= excess * self._page_bytes
        node = self._climb(match.node, excess)
        return Match(page_ids.first(match.pages, pages), pages * self.page_size, node)

    @property
    def version(self) -> tuple[int, int]:
        """Pages that ever came in, and that ever went: differs after every change of what is cached."""
        gone = self._evicted + self._forgotten
        return self.total + gone, gone

    def peek(self, tokens: Int32Data, namespace: Hashable = None) -> int:
        """How many leading tokens are cached. Changes and counts nothing.

        Costs what is found, not how many tokens there are: no more of them are copied than a page at a time.
        """
        view = _as_view(tokens)
        node: Node = self._roots.get(namespace, self._nowhere)
        page, at = self._page_bytes, 0
        while (child := node.children.get(bytes(view[at : at + page]))) is not None:
            size = len(child.key)
            if view[at : at + size] != child.key:
                return at // page_ids.WIDTH + common_pages(child.key, view, at, page) * self.page_size
            node = child
            at += size
        return at // page_ids.WIDTH

    def insert(
        self,
        tokens: Int32Data,
        pages: Int32Data,
        namespace: Hashable = None,
        *,
        held: Node | None = None,
        priority: int = 0,
    ) -> Insertion:
        """Cache the whole pages of `tokens`, which `pages` hold in order; further pages are ignored.

        A lock on `held` moves to the node of the answer; without `held` the answer is not locked. `priority`
        matters only to the policy of that name. ValueError when `pages` are too few.
        """
        root = self._roots.get(namespace) or self._nowhere
        return self._grow(root, _as_bytes(tokens), _as_bytes(pages), namespace, held, priority)

    def extend(
        self,
        held: Node,
        tokens: Int32Data,
        pages: Int32Data,
        namespace: Hashable = None,
        *,
        priority: int = 0,
    ) -> Insertion:
        """`insert` for a caller that holds the beginning: arguments and answer are about what follows `held`.

        Costs the same however long the beginning is. The lock on `held` moves to the node of the answer.
        """
        key = tokens if type(tokens) is bytes else _as_bytes(tokens)
        mine = pages if type(pages) is bytes else _as_bytes(pages)
        if (
            key
            and len(key) == len(mine) * self.page_size
            and (node := self.append(held, key, mine)) is not None
        ):
            return Insertion(mine, b"", node)
        start = held if held.parent is not None else self._roots.get(namespace) or self._nowhere
        return self._grow(start, key, mine, namespace, held, priority)

    def append(self, held: Node, key: bytes, pages: bytes) -> Node | None:
        """`extend` by whole pages in the common case that is cheap; None, and nothing done, in others.

        Args:
            key: tokens, int32 bytes, as many as ``pages`` hold: at least one page.

        Returns:
            The node of the answer; the pages that hold the tokens are those given.
        """
        first = key[: self._page_bytes]
        if (
            first in held.children  # somebody published the same before: it must be followed
            or held.parent is None
            or len(key) > self._max_edge
            or self._ranked
            or self._retired
            or self._feed is not None
        ):
            return None
        self.protected += page_ids.count(pages)
        if held.locks == 1 and not held.children and len(held.key) + len(key) <= self._max_edge:
            held.key += key
            held.pages += pages
            return held
        node = held.children[first] = Node(held, key, pages, 0)
        node.locks = 1  # the caller's; what it had on the node above now stands for this one's
        return node

    def _grow(
        self, node: Node, key: bytes, mine: bytes, namespace: Hashable, held: Node | None, priority: int
    ) -> Insertion:
        """Cache the whole pages of `key` below `node`."""
        page = self._page_bytes
        count = len(key) // page
        given = page_ids.count(mine)
        if given != count or not count:
            if given < count:
                raise ValueError(f"{count} pages of tokens need as many page ids, got {given}")
            if not count:
                end = held or node
                if self._ranked:  # what is held counts as inserted once more, by one of this priority
                    self._raise_path(end, self._policy.enter(0, priority))
                return Insertion(b"", b"", end)
            mine = page_ids.first(mine, count)
        if node is self._nowhere:
            node = self._roots[namespace] = Root(namespace)
        new, duplicates = mine, b""
        if key[:page] in node.children:
            node, at, cached = self._descend(node, key)
            if not mine.startswith(cached):
                duplicates = _where_different(mine, cached)
                mine = cached + mine[len(cached) :]
            key, new = key[at:], mine[len(cached) :]
        rank = 0
        if self._ranked:
            self._turn += 1
            rank = self._policy.enter(self._turn if new else 0, priority)
        if new:
            moves = node is held
            node = self._add(node, key[: page_ids.count(new) * page], new, moves, rank)
            if moves:
                held = node
        if held is not node:
            if held is not None:
                self.lock(node)
                self.unlock(held)
            elif not self._ranked:
                self._touch(node)
        if self._ranked:
            self._raise_path(node, rank)
        if self._retired:
            self.reclaim(_RECLAIM)
        return Insertion(mine, duplicates, node)

    def evict(self, pages: int) -> int:
        """Give up to `pages` unlocked pages back to the allocator; returns how many."""
        gone: list[bytes] = []
        freed = 0
        while freed < pages and (node := self._order.first()) is not None:
            whole = page_ids.count(node.pages)
            size = min(whole, pages - freed)
            freed += size
            if self._feed is not None:
                self._feed.removed(node, size)
            if size < whole:
                gone.append(page_ids.last(node.pages, size))
                node.pages = page_ids.without_last(node.pages, size)
                node.key = node.key[: -size * self._page_bytes]
            else:
                gone.append(node.pages)
                self._remove(node)
        self.evictable -= freed
        self._evicted += freed
        self.allocator.give(b"".join(gone))
        return freed

    def reset(self) -> None:
        """Forget everything and free its pages; raises `CacheInUse` while anything is locked.

        Costs the same at any size when every page that is out is the cache's, as on an idle engine;
        otherwise the pages are given back prefix by prefix.
        """
        if self.protected:
            raise CacheInUse(self.protected)
        if self.allocator.in_use == self.evictable:
            self.allocator.reset()
        else:
            self.allocator.give(b"".join([node.pages for node in self.nodes()]))
        if self.evictable:
            self._retired.append(self._order)
            self._order = order_for(self._policy)
        self._roots = {}
        self._forgotten += self.evictable
        self.evictable = 0
        if self._feed is not None:
            self._feed.cleared()

    def reclaim(self, nodes: int) -> int:
        """Free the memory of up to `nodes` nodes that `reset` detached; returns how many. Called while idle."""
        done = 0
        while self._retired and done < nodes:
            node = self._retired[-1].first()
            if node is None:
                self._retired.pop()
            else:
                self._remove(node)
                done += 1
        return done

    def attach(self, listener: CacheListener | None) -> None:
        """Tell `listener` every block stored and removed from now on, beginning with those cached already.

        It is called in the middle of cache calls: it must neither raise nor call back. None ends it.
        """
        self._feed = None if listener is None else EventFeed(listener, self.page_size)
        if self._feed is not None:
            for node in self.nodes():
                self._feed.stored(node)


def _as_bytes(data: Int32Data) -> bytes:
    if isinstance(data, bytes):
        return data
    if data.dtype != np.int32:
        raise TypeError(f"tokens and page ids are int32, got {data.dtype}")
    return data.tobytes()


def _as_view(data: Int32Data) -> memoryview:
    """The bytes of tokens, where they are."""
    if isinstance(data, bytes):
        return memoryview(data)
    if data.dtype != np.int32 or not data.flags.c_contiguous or not data.size:
        return memoryview(_as_bytes(data))
    return data.data.cast("B")


def _where_different(mine: bytes, cached: bytes) -> bytes:
    """Ids of `mine` that are not at the same place in `cached`, which is no longer than `mine`."""
    theirs = page_ids.as_array(cached)
    ours = page_ids.as_array(mine, len(theirs))
    different: bytes = ours[ours != theirs].tobytes()
    return different
