"""A request's hold on the pools: its row, its pages, its lock on the prefix cache, and its state slot."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import numpy as np

from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_node import Node
from devicekit.memory.prefix_records import Insertion
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import Int32
from devicekit.scheduling.request import Request

_TIDY_NODES = 256


class Tier(Protocol):
    """A further level behind the prefix cache."""

    def load(self, tokens: Int32, namespace: Hashable, known: int, target: bytes, owner: str) -> int:
        """Fill device pages ``target`` with what comes behind the first ``known`` pages; how many."""
        ...

    def store(self, tokens: Int32, namespace: Hashable, pages: bytes, node: Node, owner: str) -> None:
        """Keep a copy of a prefix that has entered the cache."""
        ...

    def wait(self) -> None:
        """Wait for the copies under way, which keep pages from being evicted."""
        ...


class RequestKV:
    """Takes and gives rows and pages for requests, sharing cached prefixes where there is a cache.

    Args:
        states: slots for models with recurrent layers; a request takes one with its row.
    """

    def __init__(
        self,
        table: RequestTable,
        pages: PageAllocator,
        page_size: int,
        prefix: PrefixCache | None,
        states: PageAllocator | None = None,
    ) -> None:
        self.table = table
        self.pages = pages
        self.page_size = page_size
        self.prefix = prefix
        self.states = states
        self.state_slots: Int32 = np.zeros(table.num_rows + 1, np.int32)  # of each row
        self.tier: Tier | None = None
        # Copying page ids in and out of rows through a memoryview costs a third of numpy.
        self._rows = table.pages.reshape(-1).data
        self._row_bytes = self._rows.cast("B")
        self._pages_per_row = table.pages_per_row

    @property
    def available(self) -> int:
        """Pages that can be taken, evicting what the prefix cache need not keep."""
        return self.pages.available + (self.prefix.evictable if self.prefix else 0)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def cached_tokens(self, request: Request, namespace: Hashable) -> int:
        """Leading tokens of a waiting request that are cached. Counts as no use of them."""
        return 0 if self.prefix is None else self.prefix.peek(request.tokens[:-1], namespace)

    def acquire(self, request: Request, namespace: Hashable, spare: int) -> bool:
        """Give a request a row and pages for all its known tokens, cached ones first.

        Args:
            spare: pages that must be left over.

        Returns:
            False, and nothing taken, when there is no row or there are too few pages.
        """
        prefix, pages = self.prefix, self.pages
        if self.states is not None and not self.states.available:
            return False
        row = self.table.take_one()
        if not row:
            return False
        cached, node = b"", None
        if prefix is not None:
            match = prefix.hold(request.tokens.tobytes()[:-4], namespace)
            cached, node = match.pages, match.node
        shared = len(cached) // 4
        needed = -(-request.total // self.page_size) - shared
        own = pages.take(needed) if needed + spare <= pages.available else self._take_evicting(needed, spare)
        if own is None:
            if prefix is not None and node is not None:
                prefix.unlock(node)
            self.table.give_one(row)
            return False
        self._seat(request, row, node, namespace, shared, cached + own)
        if self.tier is not None:
            loaded = self.tier.load(request.tokens[:-1], namespace, shared, own, request.id)
            request.computed += loaded * self.page_size
        return True

    def _seat(
        self, request: Request, row: int, held: Node | None, space: Hashable, shared: int, pages: bytes
    ) -> None:
        """Give a request a row with these pages, the first ``shared`` of them cached and held."""
        request.row, request.held, request.space = row, held, space
        if self.states is not None:
            self.state_slots[row] = self.states.take_one()
        request.cached_pages = shared
        request.num_pages = len(pages) // 4
        request.computed = shared * self.page_size
        at = row * self._pages_per_row * 4
        self._row_bytes[at : at + len(pages)] = pages
        if self.table.followed:
            self.table.mark(row, request.num_pages)

    def _take_evicting(self, count: int, spare: int) -> bytes | None:
        if count + spare > self.available:
            return None
        return self.take(count)

    def take(self, count: int) -> bytes | None:
        """Take pages, evicting if need be; ``None``, and nothing taken, when there are too few."""
        self.make_room(count)
        return self.pages.take(count)

    def make_room(self, count: int) -> bool:
        """Evict until ``count`` pages are available. False: even so they are not."""
        short = count - self.pages.available
        if short > 0 and self.prefix is not None:
            short -= self.prefix.evict(short)
            if short > 0 and self.tier is not None:
                self.tier.wait()
                short -= self.prefix.evict(short)
        return short <= 0

    def publish(self, request: Request) -> None:
        """Share the full pages of a request, as far as it is computed, with later requests."""
        prefix, held = self.prefix, request.held
        if prefix is None or held is None or request.private:
            return
        size, known, row = self.page_size, request.cached_pages, request.row
        full = request.computed // size
        at = row * self._pages_per_row
        if full > known:
            key = self.table.raw_tokens(row, known * size, full * size)
            mine = self._rows[at + known : at + full]
            pages = mine.tobytes()
            node = prefix.append(held, key, pages)
            if node is None:
                done = prefix.extend(held, key, pages, request.space)
                node = done.node
                if done.duplicates:
                    self._replace(mine, done)
                    self.table.mark(row, full)
            request.held = held = node
            request.cached_pages = full
        if self.tier is not None:
            pages = self._rows[at : at + full].tobytes()
            self.tier.store(
                self.table.tokens[row, : request.computed], request.space, pages, held, request.id
            )

    def _replace(self, mine: memoryview, done: Insertion) -> None:
        """Go on with the cache's pages where somebody else published the same tokens first."""
        self.pages.give(done.duplicates)
        mine.cast("B")[:] = done.pages

    def drop(self, request: Request, first: int) -> None:
        """Give back the pages before token ``first``, at which no layer will look again.

        The cache may evict what the request shared of them. With a hole at its beginning the request shares
        nothing from then on.
        """
        begin, end = request.dropped_pages or request.cached_pages, first // self.page_size
        if end <= begin:
            return
        if self.prefix is not None and request.held is not None:
            self.prefix.unlock(request.held)
            request.held = None
        row = self.table.pages[request.row]
        self.pages.give(row[begin:end].tobytes())
        row[:end] = 0
        self.table.mark(request.row, end)
        request.dropped_pages = end

    def release(self, request: Request) -> None:
        """Give back a request's row and its own pages. Cached pages stay with the cache."""
        row = request.row
        if not row:
            return
        at = row * self._pages_per_row
        begin = request.dropped_pages or request.cached_pages  # what is dropped ends behind what is cached
        self.pages.give(self._rows[at + begin : at + request.num_pages].tobytes())
        if self.prefix is not None and request.held is not None:
            self.prefix.unlock(request.held)
            request.held = None
        if self.states is not None:
            self.states.give_one(int(self.state_slots[row]))
        self.table.give_one(row)
        request.private = False
        request.row = request.num_pages = request.cached_pages = request.dropped_pages = request.computed = 0

    def owned(self, request: Request) -> Int32:
        """The pages that a request has to itself."""
        begin = request.dropped_pages or request.cached_pages  # what is dropped ends behind what is cached
        return self.table.pages[request.row, begin : request.num_pages]

    def tidy(self) -> None:
        """Take apart a little of what `reset` only forgot. For idle moments."""
        if self.prefix is not None:
            self.prefix.reclaim(_TIDY_NODES)

    def reset(self) -> int:
        """Forget every cached prefix and free every page, row and state slot. Nothing may hold any.

        Returns:
            Cached pages that were forgotten.
        """
        forgotten = self.prefix.evictable if self.prefix is not None else 0
        if self.prefix is not None:
            self.prefix.reset()
        self.table.reset()
        self.pages.reset()
        if self.states is not None:
            self.states.reset()
        return forgotten
