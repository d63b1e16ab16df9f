"""A request's hold on the pools of a model in which only some layers have a window.

Pages are as ever: in the table, the prefix cache and the running batch. On those that some token may still look
at through a window hangs a window page, pinned by each request that may. A prompt longer than its window takes as
many window pages as a chunk can reach, and they wander along with it. Window pages that nobody looks at any more
stay on their pages, so that cached prefixes can be continued, until somebody needs them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.attached_pages import PairedAllocator
from devicekit.memory.paired_sizing import least_window_pages, pages_in_reach
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_node import Node
from devicekit.memory.prefix_records import Insertion
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import Int32, Int64
from devicekit.scheduling.kv import RequestKV
from devicekit.scheduling.request import Request
from devicekit.scheduling.running import RunningBatch

_ALL = np.iinfo(np.int64).max  # pages taken from now on come with window pages


class PairedKV(RequestKV):
    """Takes and gives rows and pages for requests, and pins the window pages that they look at.

    Args:
        window: keys that a token sees in layers with a window, itself included.

    Raises:
        ConfigurationError: there are too few window pages for a long prompt.
    """

    def __init__(
        self,
        table: RequestTable,
        pages: PairedAllocator,
        page_size: int,
        prefix: PrefixCache | None,
        *,
        window: int,
        max_batch_tokens: int,
    ) -> None:
        super().__init__(table, pages, page_size, prefix)
        self.windows = pages.attached
        self._paired = pages
        self._window = window
        self._chunk = pages_in_reach(window, page_size, max_batch_tokens)
        self._most = pages_in_reach(window, page_size)  # that a request pins while it decodes
        least = least_window_pages(window, page_size, max_batch_tokens)
        if self.windows.total < min(least, pages.num_pages):
            raise ConfigurationError(
                f"{self.windows.total} window pages of {page_size} tokens do not let a prompt run: a window of "
                f"{window} tokens and passes of {max_batch_tokens} need {least}"
            )
        # Of each row: its pages between these two have window pages, which it has pinned.
        self._first: Int64 = np.zeros(table.num_rows + 1, np.int64)
        self._end: Int64 = np.zeros(table.num_rows + 1, np.int64)

    @property
    def available(self) -> int:
        """Pages that can be taken with a window page each, evicting what the prefix cache need not keep."""
        cached = self.prefix.evictable if self.prefix else 0
        return min(self._paired.bare_available + cached, self.windows.available)

    def acquire(self, request: Request, namespace: Hashable, spare: int) -> bool:
        """As `RequestKV.acquire`; with window pages for the first chunk and what it looks back at."""
        row = self.table.take_one()
        if not row:
            return False
        cached, node = self._match(request, namespace)
        shared = len(cached)
        first = self._first_seen(shared * self.page_size)
        self.windows.pin(cached[first:])
        needed = self.pages_for(request.total) - shared
        covered = min(needed, self._chunk)
        own = self._take_own(needed, covered, spare)
        if own is None:
            self.windows.unpin(cached[first:])
            if self.prefix is not None and node is not None:
                self.prefix.unlock(node)
            self.table.give_one(row)
            return False
        self._seat(request, row, node, namespace, shared, cached.tobytes() + own)
        self._first[row] = first
        self._end[row] = shared + covered if covered < needed else _ALL
        return True

    def make_room(self, count: int) -> bool:
        """Evict until ``count`` pages are available with window pages. False: even so they are not."""
        return count <= self.windows.available and self._make_bare_room(count)

    def pass_window(self, running: RunningBatch, prefilling: Iterable[Request]) -> None:
        """Unpin what has left the windows of requests that need further pages now."""
        for request in prefilling:
            self._move_window(request)
        columns = running.full_columns()
        if not len(columns):
            return
        rows = running.view.rows[columns].astype(np.int64)
        first = self._first[rows]
        seen = np.maximum(running.view.positions[columns] - self._window + 1, 0) // self.page_size
        counts = np.maximum(seen - first, 0)
        self._first[rows] = first + counts
        behind = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.windows.unpin(self.table.pages[np.repeat(rows, counts), np.repeat(first, counts) + behind])

    def release(self, request: Request) -> None:
        """As `RequestKV.release`."""
        if request.row:
            self.windows.unpin(self.pinned(request))
        super().release(request)

    def pinned(self, request: Request) -> Int32:
        """The pages whose window pages a request has pinned."""
        first, end = int(self._first[request.row]), int(self._end[request.row])
        return self.table.pages[request.row, first : min(end, request.num_pages)]

    # -- Parts ------------------------------------------------------------------------------------------------

    def _match(self, request: Request, namespace: Hashable) -> tuple[Int32, Node | None]:
        """The longest cached prefix whose end has its window pages, locked."""
        if self.prefix is None:
            return np.empty(0, np.int32), None
        match = self.prefix.match(request.tokens[:-1].tobytes(), namespace)
        pages = np.frombuffer(match.pages, np.int32)
        usable = self._usable(pages)
        if usable < len(pages):
            match = self.prefix.shorten(match, usable)
        self.prefix.lock(match.node)
        return pages[:usable], match.node

    def _usable(self, pages: Int32) -> int:
        """How many of a prefix's pages there may be so that those in the window before its end can be read."""
        at = np.arange(len(pages))
        first_seen = np.maximum((at + 1) * self.page_size - self._window + 1, 0) // self.page_size
        last_missing = np.maximum.accumulate(np.where(self.windows.of[pages] != 0, -1, at))
        usable = np.flatnonzero(last_missing < first_seen)
        return int(usable[-1]) + 1 if len(usable) else 0

    def _first_seen(self, position: int) -> int:
        """The page of the first key that a token at ``position`` sees through a window."""
        return max(position - self._window + 1, 0) // self.page_size

    def _take_own(self, needed: int, covered: int, spare: int) -> bytes | None:
        """Pages for what is not cached, window pages on the first ``covered`` of them."""
        pinned = self.windows.total - self.windows.available
        holders = self.table.num_rows - self.table.available  # the newcomer included
        spare_windows = min(spare, max(0, holders * self._most - pinned))
        cached = self.prefix.evictable if self.prefix else 0
        if (
            covered + spare_windows > self.windows.available
            or needed + spare > self._paired.bare_available + cached
            or not self._make_bare_room(needed)
        ):
            return None
        own = self._paired.take_bare(needed)
        if own is not None:
            self.windows.attach(np.frombuffer(own, np.int32, covered))
        return own

    def _make_bare_room(self, count: int) -> bool:
        short = count - self._paired.bare_available
        if short > 0 and self.prefix is not None:
            short -= self.prefix.evict(short)
        return short <= 0

    def _move_window(self, request: Request) -> None:
        """Let a prompt's window pages follow its chunks."""
        row = request.row
        first, end = int(self._first[row]), int(self._end[row])
        seen = self._first_seen(request.computed)
        if seen <= first:
            return
        pages = self.table.pages[row]
        self.windows.unpin(pages[first:seen])
        self._first[row] = seen
        to = min(request.num_pages, max(seen, request.cached_pages) + self._chunk)
        if to > end:
            self.windows.attach(pages[end:to])  # it has let go of as many of its own
            self._end[row] = to if to < request.num_pages else _ALL

    def _replace(self, mine: memoryview, done: Insertion) -> None:
        ours, theirs = np.frombuffer(mine, np.int32), np.frombuffer(done.pages, np.int32)
        changed = ours != theirs
        self.windows.merge(ours[changed], theirs[changed])
        super()._replace(mine, done)
