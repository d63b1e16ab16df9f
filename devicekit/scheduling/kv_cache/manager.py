"""Who holds what of the KV cache: rows and pages of requests, and the prefixes that they share.

The scheduler, the planner, audits and the server talk to `KVCacheManager` alone, whatever the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from devicekit.memory import page_ids
from devicekit.memory.audit import Conservation, audit
from devicekit.memory.pages import PagePool
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_node import Node
from devicekit.memory.prefix_records import Insertion, Match
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.audit import PoolAudit
from devicekit.scheduling.batch import ForwardBatch, Int32
from devicekit.scheduling.kv_cache.layers import Chunk, LayerCacheManager
from devicekit.scheduling.request import Request

if TYPE_CHECKING:
    from devicekit.scheduling.running import RunningBatch

_TIDY_NODES = 256


class CacheTier(Protocol):
    """A further level behind the prefix cache."""

    def load(self, tokens: Int32, namespace: Hashable, known: int, target: bytes, owner: str) -> int:
        """Load what follows the first ``known`` pages of a prompt into ``target``; returns how many pages."""
        ...

    def store(self, tokens: Int32, namespace: Hashable, pages: bytes, node: Node, owner: str) -> None:
        """Keep a copy of a prefix that has entered the cache."""
        ...

    def wait(self) -> None:
        """Wait for the copies under way, which keep pages from being evicted."""
        ...

    @property
    def pages(self) -> PagePool:
        """The tier's own pages."""
        ...

    def audit(self) -> Conservation:
        """Account for every page of the tier."""
        ...


class KVCacheManager:
    """Gives rows and pages to requests and takes them back, sharing cached prefixes where there is a cache.

    Args:
        pages: what prompts take their pages from, and the prefix cache gives them back to.
        layers: what layers of special kinds add.
        decode_pages: what running requests take theirs from; default: ``pages``.
    """

    def __init__(
        self,
        table: RequestTable,
        pages: PagePool,
        page_size: int,
        prefix: PrefixCache | None,
        layers: Sequence[LayerCacheManager] = (),
        *,
        decode_pages: PagePool | None = None,
    ) -> None:
        self.table = table
        self.pages = pages
        self.decode_pages = pages if decode_pages is None else decode_pages
        self.page_size = page_size
        self.prefix = prefix
        self.layers = tuple(layers)
        self.tier: CacheTier | None = None
        self.fills = any(layer.fills for layer in layers)
        self._unbalanced: PoolAudit | None = None
        self._restricting = tuple(layer for layer in layers if layer.restricts)

    def attach_tier(self, tier: CacheTier) -> None:
        """Give the prefix cache a second level."""
        self.tier = tier

    # -- What there is ----------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Pages that running requests can take, evicting what the prefix cache need not keep."""
        pages = self.pages.available + (self.prefix.evictable if self.prefix else 0)
        limits = [layer.available for layer in self.layers]
        return min([pages, *(limit for limit in limits if limit is not None)])

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    @property
    def may_start(self) -> bool:
        """Whether another request could start: it needs a row, and at least one page of its own."""
        if not self.table.available:
            return False
        if not (self.pages.available or (self.prefix is not None and self.prefix.evictable)):
            return False
        return all(layer.may_start for layer in self.layers)

    @property
    def cache_version(self) -> Hashable:
        """A value that differs after every change of what is cached. Costs nothing to ask."""
        return None if self.prefix is None else self.prefix.version

    def cached_tokens(self, request: Request, namespace: Hashable) -> int:
        """Leading tokens of a waiting request that are cached. Does not count as a use of them."""
        return 0 if self.prefix is None else self.prefix.peek(request.tokens[: request.reusable], namespace)

    def remaining_tokens(self, most: int, requests: int) -> int:
        """How many of the ``most`` tokens that ``requests`` may still produce together need new pages."""
        for layer in self.layers:
            most = layer.remaining_tokens(most, requests)
        return most

    # -- Admission --------------------------------------------------------------------------------------------

    def allocate(self, request: Request, namespace: Hashable, spare: int) -> bool:
        """Give a request a row and pages for all its known tokens, cached ones first.

        Args:
            spare: pages that must be left over.

        Returns:
            False, and nothing taken, when there is no row or there are too few pages.
        """
        for layer in self.layers:
            if not layer.may_start:
                return False
        row = self.table.take_one()
        if not row:
            return False
        match = self._match(row, request, namespace)
        cached, node = (page_ids.NO_PAGES, None) if match is None else (match.pages, match.node)
        shared = page_ids.count(cached)
        own = self._take_for_prompt(-(-request.total // self.page_size) - shared, spare)
        if own is None:
            for layer in self.layers:
                layer.let_go(row)
            if self.prefix is not None and node is not None:
                self.prefix.unlock(node)
            self.table.give_one(row)
            return False
        request.row, request.last_node, request.cache_namespace = row, node, namespace
        request.cached_pages = shared
        request.num_pages = shared + page_ids.count(own)
        request.computed = shared * self.page_size
        self.table.write_pages(row, 0, cached + own)
        for layer in self.layers:
            layer.seat(request, page_ids.as_array(own))
        if self.tier is not None:
            loaded = self.tier.load(request.tokens[: request.reusable], namespace, shared, own, request.id)
            request.computed += loaded * self.page_size
        return True

    def _match(self, row: int, request: Request, namespace: Hashable) -> Match | None:
        """Lock and return the longest cached prefix that every layer can continue; ``None``: no cache."""
        prefix = self.prefix
        if prefix is not None and not self.layers:
            return prefix.hold(_reusable(request), namespace)
        match, matched, shared = None, np.empty(0, np.int32), 0
        if prefix is not None:
            match = prefix.match(_reusable(request), namespace)
            matched = page_ids.as_array(match.pages)
            shared = self._usable(matched)
            if shared < len(matched):
                match = prefix.shorten(match, shared)
            prefix.lock(match.node)
        for layer in self.layers:
            layer.hold(row, matched, shared)
        return match

    def _usable(self, matched: Int32) -> int:
        usable = len(matched)
        if self._restricting:
            while (least := min(layer.usable(matched[:usable]) for layer in self._restricting)) < usable:
                usable = least
        return usable

    def _take_for_prompt(self, count: int, spare: int) -> bytes | None:
        for layer in self.layers:
            if not layer.fits(count, spare):
                return None
        short = count + spare - self.pages.available
        if short > 0:
            if self.prefix is None or short > self.prefix.evictable:
                return None
            self._evict_for(count)
        return self.pages.take(count)

    # -- A pass -----------------------------------------------------------------------------------------------

    def before_pass(self, running: RunningBatch, prefilling: Sequence[Request]) -> None:
        """Release what requests no longer need, before they are given what they need next."""
        for layer in self.layers:
            layer.before_pass(running, prefilling)

    def make_room(self, count: int) -> bool:
        """Evict until running requests can take ``count`` pages. False if that is not possible."""
        for layer in self.layers:
            if layer.available is not None and count > layer.available:
                return False
        return self._evict_for(count)

    def _evict_for(self, count: int) -> bool:
        short = count - self.pages.available
        if short > 0 and self.prefix is not None:
            short -= self.prefix.evict(short)
            if short > 0 and self.tier is not None:
                self.tier.wait()
                short -= self.prefix.evict(short)
        return short <= 0

    def computable(self, request: Request) -> int:
        """How many tokens of a prompt the next pass may compute, from the first one that is not computed."""
        count = request.total - request.computed
        for layer in self.layers:
            count = layer.computable(request, count)
        return count

    def fill(self, batch: ForwardBatch, chunks: Iterable[Chunk]) -> None:
        """Add to a batch what layers of special kinds read. Where ``fills`` is false there is nothing to add."""
        for layer in self.layers:
            layer.fill(batch, chunks)

    # -- After a pass -----------------------------------------------------------------------------------------

    def publish(self, request: Request) -> None:
        """Put the full pages of a request, as far as it is computed, into the prefix cache."""
        prefix, held = self.prefix, request.last_node
        if prefix is not None and held is not None and not request.no_prefix_sharing:
            known, full = request.cached_pages, request.computed // self.page_size
            if full > known or prefix.by_priority:
                request.last_node = held = self._insert(prefix, request, held, known, full)
                request.cached_pages = full
            if self.tier is not None:
                pages = self.table.page_rows.ids(request.row, 0, full)
                tokens = self.table.tokens[request.row, : request.computed]
                self.tier.store(tokens, request.cache_namespace, pages, held, request.id)
        for layer in self.layers:
            layer.published(request)

    def _insert(self, prefix: PrefixCache, request: Request, held: Node, known: int, full: int) -> Node:
        """Put a request's pages after the first ``known`` into the cache; returns its new node there."""
        row, size = request.row, self.page_size
        key = self.table.token_rows.ids(row, known * size, full * size)
        pages = self.table.page_rows.ids(row, known, full)
        if full > known and (node := prefix.append(held, key, pages)) is not None:
            return node
        done = prefix.extend(held, key, pages, request.cache_namespace, priority=request.priority)
        if done.duplicates:
            self._replace(row, known, pages, done)
        return done.node

    def _replace(self, row: int, known: int, mine: bytes, done: Insertion) -> None:
        """Use the cache's pages where another request has published the same tokens first."""
        if self.layers:
            ours, theirs = page_ids.as_array(mine), page_ids.as_array(done.pages)
            changed = ours != theirs
            for layer in self.layers:
                layer.replaced(ours[changed], theirs[changed])
        self.pages.give(done.duplicates)
        self.table.write_pages(row, known, done.pages)

    def free(self, request: Request) -> None:
        """Take back a request's row and its own pages. Cached pages stay with the cache."""
        row = request.row
        if not row:
            return
        for layer in self.layers:
            layer.free(request)
        self.pages.give(self.table.page_rows.ids(row, _first_own(request), request.num_pages))
        if self.prefix is not None and request.last_node is not None:
            self.prefix.unlock(request.last_node)
            request.last_node = None
        self.table.give_one(row)
        request.no_prefix_sharing = False
        request.row = request.num_pages = request.cached_pages = request.dropped_pages = request.computed = 0

    def tidy(self) -> None:
        """Take apart some of the tree that `reset` only detached. Called while idle."""
        if self.prefix is not None:
            self.prefix.reclaim(_TIDY_NODES)

    def reset(self) -> int:
        """Forget every cached prefix and free every page, row and state slot. No request may hold any.

        Returns:
            Cached pages that were forgotten.
        """
        forgotten = self.prefix.evictable if self.prefix is not None else 0
        if self.prefix is not None:
            self.prefix.reset()
        self.table.reset()
        self.pages.reset()
        for layer in self.layers:
            layer.reset()
        return forgotten

    # -- Accounts ---------------------------------------------------------------------------------------------

    def owned(self, request: Request) -> Int32:
        """The pages that a request has to itself."""
        return self.table.pages[request.row, _first_own(request) : request.num_pages]

    def pools(self) -> dict[str, PagePool]:
        """Every pool by the name that it has in a `PoolAudit`."""
        pools: dict[str, PagePool] = {"pages": self.pages, "rows": self.table.rows}
        for layer in self.layers:
            if layer.name is not None and layer.pool is not None:
                pools[layer.name] = layer.pool
        if self.tier is not None:
            pools["host_pages"] = self.tier.pages
        return pools

    def audit(self, holders: Sequence[Request]) -> PoolAudit:
        """Account for every id of every pool, given the requests that hold KV, settled.

        Walks the prefix cache, and sorts all ids: not for every step. The first imbalance is noted.
        """
        own = np.concatenate([np.empty(0, np.int32), *(self.owned(request) for request in holders)])
        found = {layer.name: layer.audit(holders) for layer in self.layers if layer.name is not None}
        account = PoolAudit(
            pages=audit(self.pages, owned=own, cache=self.prefix),
            rows=audit(self.table.rows, owned=np.array([request.row for request in holders], np.int32)),
            states=found.get("states"),
            window_pages=found.get("window_pages"),
            snapshots=found.get("snapshots"),
            host_pages=None if self.tier is None else self.tier.audit(),
        )
        if not account.balanced and self._unbalanced is None:
            self._unbalanced = account
        return account

    @property
    def unbalanced(self) -> PoolAudit | None:
        """The first audit that found ids missing or held twice; ``None``: there was none."""
        return self._unbalanced

    @property
    def at_rest(self) -> bool:
        """Whether nothing is held but by the cache. Without requests, anything else is a leak. Costs little."""
        cached = 0 if self.prefix is None else self.prefix.total  # locked ones too: copies may be under way
        rows = self.table.rows
        return (
            self.pages.in_use == cached
            and rows.available == rows.num_pages
            and all(layer.at_rest for layer in self.layers)
        )


def _first_own(request: Request) -> int:
    """Number of the first page that is a request's own: dropped and cached ones come before it."""
    return request.dropped_pages or request.cached_pages


def _reusable(request: Request) -> bytes:
    """The tokens whose KV may come from a cache."""
    content = request.tokens.tobytes()
    if request.scored is None:
        return page_ids.without_last(content, 1)
    return page_ids.first(content, request.reusable)
