"""Attachments to pages, of which there are fewer than pages: window pages, or snapshots of recurrent states.

Tables, the prefix cache and requests know page ids only. An attachment is an id of a second pool, found at
``of[page]``, and is taken back with its page. Until then it is either pinned, by requests that will read it again,
or idle. An idle one stays where it is until another page needs it; those idle longest go first.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from devicekit.memory.pages import PageAllocator

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class Attachments:
    """A pool of ``count`` ids that can be attached to the pages 1 to ``num_pages``.

    Pages are given as int32 arrays. ``of`` keeps its address for good; it is to be read only.
    """

    __slots__ = ("_clock", "_queue", "_queued", "_since", "idle", "ids", "of", "pins")

    def __init__(self, num_pages: int, count: int, *, checked: bool = False) -> None:
        self.ids = PageAllocator(count, checked=checked)
        self.of: Int32 = np.zeros(num_pages + 1, np.int32)  # 0: nothing hangs on this page
        self.pins: Int32 = np.zeros(num_pages + 1, np.int32)  # who will look at it again
        self.idle = 0  # attachments without pins
        self._since: Int64 = np.zeros(num_pages + 1, np.int64)  # when it became idle; 0: it is not
        self._queue: deque[tuple[int, Int32]] = deque()  # pages that became idle at one time, oldest first
        self._queued = 0
        self._clock = 0

    @property
    def total(self) -> int:
        return self.ids.num_pages

    @property
    def available(self) -> int:
        """Ids that can be attached now, idle ones included."""
        return self.ids.available + self.idle

    def attach(self, pages: Int32) -> bool:
        """Attach a pinned id to each of these pages, which have none. False, and nothing done: too few ids."""
        short = len(pages) - self.ids.available
        if short > 0 and not self._drop(short):
            return False
        ids = self.ids.take_array(len(pages))
        if ids is None:
            return False
        self.of[pages] = ids
        self.pins[pages] = 1
        return True

    def attach_one(self, page: int) -> bool:
        """`attach` for a single page, at a fraction of the cost."""
        identity = self.ids.take_one()
        if not identity and self._drop(1):
            identity = self.ids.take_one()
        if identity:
            self.of[page] = identity
            self.pins[page] = 1
        return identity != 0

    def pin(self, pages: Int32) -> None:
        """Keep what is attached to these pages, each given once. Every one of them has an attachment."""
        self._hold(pages, np.ones(len(pages), np.int32))

    def unpin(self, pages: Int32) -> None:
        """Undo one `pin` for each time that a page is given."""
        if not len(pages):
            return
        np.subtract.at(self.pins, pages, 1)
        self._rest(np.unique(pages[self.pins[pages] == 0]))

    def merge(self, source: Int32, target: Int32) -> None:
        """Move attachments from source pages, about to be given back, to target pages with the same contents.

        Pins move. An attachment moves where the target page has none.
        """
        pins = self.pins[source]
        moved = (self.of[source] != 0) & (self.of[target] == 0)
        ids = self.of[source[moved]]
        self.of[source[moved]] = 0
        self.idle += int(np.count_nonzero(pins[moved]))  # idle for a moment, until its pins have followed
        self._since[source[moved]] = 0
        self.of[target[moved]] = ids
        self._hold(target, pins)
        self._rest(target[moved & (pins == 0)], new=False)
        self.pins[source[moved]] = 0
        self.forget(source)

    def forget(self, pages: Int32) -> None:
        """Take back what is attached to these pages, pinned or not."""
        bearing = pages[self.of[pages] != 0]
        if len(bearing):
            self.idle -= int(np.count_nonzero(self.pins[bearing] == 0))
            self._detach(bearing)

    def reset(self) -> None:
        """Take back everything."""
        self.ids.reset()
        for array in (self.of, self.pins, self._since):
            array.fill(0)
        self._queue.clear()
        self.idle = self._queued = 0

    def _hold(self, pages: Int32, pins: Int32) -> None:
        before = self.pins[pages]
        woken = pages[(before == 0) & (pins > 0)]
        self.idle -= len(woken)
        self._since[woken] = 0
        self.pins[pages] = before + pins

    def _rest(self, pages: Int32, *, new: bool = True) -> None:
        """Put pages whose attachment nobody pins at the end of the queue."""
        if not len(pages):
            return
        self._clock += 1
        self._since[pages] = self._clock
        self._queue.append((self._clock, pages))
        self._queued += len(pages)
        if new:
            self.idle += len(pages)
        if self._queued > 2 * self.total + 64:  # at least half of it is stale: on average this costs little
            self._tidy()

    def _drop(self, count: int) -> bool:
        """Take back the ``count`` attachments that have been idle longest. False, and nothing done: too few."""
        if count > self.idle:
            return False
        self.idle -= count
        while count > 0:
            time, pages = self._queue.popleft()
            self._queued -= len(pages)
            idle = pages[self._since[pages] == time]
            if len(idle) > count:
                self._queue.appendleft((time, idle[count:]))
                self._queued += len(idle) - count
                idle = idle[:count]
            self._detach(idle)
            count -= len(idle)
        return True

    def _detach(self, pages: Int32) -> None:
        self.ids.give(self.of[pages])
        self.of[pages] = 0
        self.pins[pages] = 0
        self._since[pages] = 0

    def _tidy(self) -> None:
        """Remove from the queue what is not idle any more."""
        kept = [(time, pages[self._since[pages] == time]) for time, pages in self._queue]
        self._queue = deque((time, pages) for time, pages in kept if len(pages))
        self._queued = sum(len(pages) for _, pages in self._queue)
