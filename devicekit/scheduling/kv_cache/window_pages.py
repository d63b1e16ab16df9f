"""Models in which only some layers have a window: those layers' keys and values are in a smaller pool.

Pages work as usual in the table, the prefix cache and the running batch. Beside that, a window page is attached to
each page that some token may still read through a window, and pinned by each request that may. A prompt longer
than its window takes as many window pages as one chunk can reach, and moves them along with its chunks. Window
pages that no request pins stay on their pages, so that cached prefixes can be continued, until another request
needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.attached_audit import audit_attached
from devicekit.memory.attached_pages import PairedAllocator
from devicekit.memory.audit import Conservation
from devicekit.memory.pages import PagePool
from devicekit.memory.paired_sizing import least_window_pages, pages_in_reach
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import ForwardBatch, Int32, Int64
from devicekit.scheduling.kv_cache.layers import Chunk, LayerCacheManager
from devicekit.scheduling.request import Request

if TYPE_CHECKING:
    from devicekit.scheduling.running import RunningBatch

_ALL = np.iinfo(np.int64).max  # pages taken from now on come with window pages


class WindowPagesManager(LayerCacheManager):
    """Pins the window pages that requests read.

    Args:
        pages: what running requests take their pages from, with a window page each.
        window: keys that a token sees in layers with a window, itself included.

    Raises:
        ConfigurationError: there are too few window pages for a long prompt.
    """

    restricts = True
    fills = True
    name = "window_pages"

    def __init__(
        self,
        table: RequestTable,
        pages: PairedAllocator,
        page_size: int,
        *,
        window: int,
        max_batch_tokens: int,
    ) -> None:
        self.windows = pages.attached
        self._table = table
        self._pages = pages
        self._page_size = page_size
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
        self._held: Int32 = np.empty(0, np.int32)  # what was pinned for the request that is being admitted

    # -- Admission --------------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        return self.windows.available

    def usable(self, pages: Int32) -> int:
        """How many leading pages of a prefix can be used: those in the window before its end must be readable."""
        at = np.arange(len(pages))
        first_seen = np.maximum((at + 1) * self._page_size - self._window + 1, 0) // self._page_size
        last_missing = np.maximum.accumulate(np.where(self.windows.of[pages] != 0, -1, at))
        usable = np.flatnonzero(last_missing < first_seen)
        return int(usable[-1]) + 1 if len(usable) else 0

    def hold(self, row: int, matched: Int32, shared: int) -> None:
        first = self._first_seen(shared * self._page_size)
        self._first[row] = first
        self._held = matched[first:shared]
        self.windows.pin(self._held)

    def let_go(self, row: int) -> None:
        self.windows.unpin(self._held)

    def fits(self, needed: int, spare: int) -> bool:
        pinned = self.windows.total - self.windows.available
        holders = self._table.num_rows - self._table.available  # the newcomer included
        spare_windows = min(spare, max(0, holders * self._most - pinned))
        return min(needed, self._chunk) + spare_windows <= self.windows.available

    def seat(self, request: Request, own: Int32) -> None:
        """Window pages for the first chunk."""
        covered = min(len(own), self._chunk)
        self.windows.attach(own[:covered])
        self._end[request.row] = request.cached_pages + covered if covered < len(own) else _ALL

    # -- A pass -----------------------------------------------------------------------------------------------

    def before_pass(self, running: RunningBatch, prefilling: Sequence[Request]) -> None:
        """Unpin what has left the windows of requests that need further pages now."""
        for request in prefilling:
            self._move_window(request)
        columns = running.full_columns()
        if not len(columns):
            return
        rows = running.view.rows[columns].astype(np.int64)
        first = self._first[rows]
        seen = np.maximum(running.view.positions[columns] - self._window + 1, 0) // self._page_size
        counts = np.maximum(seen - first, 0)
        self._first[rows] = first + counts
        behind = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.windows.unpin(self._table.pages[np.repeat(rows, counts), np.repeat(first, counts) + behind])

    def fill(self, batch: ForwardBatch, chunks: Iterable[Chunk]) -> None:
        batch.window_pages = self.windows.of

    # -- Behind it --------------------------------------------------------------------------------------------

    def replaced(self, ours: Int32, theirs: Int32) -> None:
        self.windows.merge(ours, theirs)

    def free(self, request: Request) -> None:
        self.windows.unpin(self.pinned(request))

    # -- Accounts ---------------------------------------------------------------------------------------------

    def pinned(self, request: Request) -> Int32:
        """The pages whose window pages a request has pinned."""
        first, end = int(self._first[request.row]), int(self._end[request.row])
        return self._table.pages[request.row, first : min(end, request.num_pages)]

    @property
    def pool(self) -> PagePool:
        return self.windows.ids

    @property
    def at_rest(self) -> bool:
        return self.windows.available == self.windows.total

    def audit(self, holders: Sequence[Request]) -> Conservation:
        return audit_attached(self.windows, self._pages, [self.pinned(request) for request in holders])

    # -- Parts ------------------------------------------------------------------------------------------------

    def _first_seen(self, position: int) -> int:
        """The page of the first key that a token at ``position`` sees through a window."""
        return max(position - self._window + 1, 0) // self._page_size

    def _move_window(self, request: Request) -> None:
        """Move a prompt's window pages along with its chunks."""
        row = request.row
        first, end = int(self._first[row]), int(self._end[row])
        seen = self._first_seen(request.computed)
        if seen <= first:
            return
        pages = self._table.pages[row]
        self.windows.unpin(pages[first:seen])
        self._first[row] = seen
        to = min(request.num_pages, max(seen, request.cached_pages) + self._chunk)
        if to > end:
            self.windows.attach(pages[end:to])  # it has let go of as many of its own
            self._end[row] = to if to < request.num_pages else _ALL
