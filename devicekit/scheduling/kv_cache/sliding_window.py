"""Models in which every layer has a window: pages that no layer looks at any more are given back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from devicekit.memory.pages import PagePool
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.kv_cache.layers import LayerCacheManager
from devicekit.scheduling.request import Request

if TYPE_CHECKING:
    from devicekit.scheduling.running import RunningBatch


class SlidingWindowManager(LayerCacheManager):
    """Keeps a decoding request to the pages of its window, however long it gets.

    Args:
        window: keys that a token sees, itself included.
    """

    def __init__(
        self, table: RequestTable, pages: PagePool, page_size: int, prefix: PrefixCache | None, window: int
    ) -> None:
        self._table = table
        self._pages = pages
        self._page_size = page_size
        self._prefix = prefix
        self._window = window

    def remaining_tokens(self, most: int, requests: int) -> int:
        """A request that decodes beyond its window gives back a page for each that it takes."""
        return min(most, requests * self._window)

    def before_pass(self, running: RunningBatch, prefilling: Sequence[Request]) -> None:
        """Give back about as many pages of each request as it is about to take."""
        for column in running.full_columns().tolist():
            self.drop(running.requests[column], int(running.view.positions[column]) - self._window + 1)

    def drop(self, request: Request, first: int) -> None:
        """Give back the pages before token ``first``, which no layer will read again.

        Cached ones among them may be evicted. From then on the request publishes nothing, since its beginning is
        missing.
        """
        begin, end = request.dropped_pages or request.cached_pages, first // self._page_size
        if end <= begin:
            return
        if self._prefix is not None and request.last_node is not None:
            self._prefix.unlock(request.last_node)
            request.last_node = None
        row = self._table.pages[request.row]
        self._pages.give(row[begin:end].tobytes())
        row[:end] = 0
        self._table.mark_dirty(request.row, end)
        request.dropped_pages = end
