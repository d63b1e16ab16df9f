"""Page pools with attachments: what is attached to a page leaves with it when the page is given back.

`AttachedAllocator` hands out plain pages, to which something may be attached later. `PairedAllocator` hands out
pages with a window page attached to each: for models in which some layers look back only so far, and keep their
keys and values in a smaller pool of their own. Both hold a `PageAllocator`, and answer as a `PagePool`.
"""

from __future__ import annotations

import numpy as np

from devicekit.memory.attachments import Attachments, Int32
from devicekit.memory.pages import PageAllocator, PageBytes


class AttachedAllocator:
    """Hands out the page ids 1 to ``num_pages``; up to ``count`` of them can have an attachment (``attached``)."""

    __slots__ = ("_plain", "attached")

    def __init__(self, num_pages: int, count: int, *, checked: bool = False) -> None:
        self._plain = PageAllocator(num_pages, checked=checked)
        self.attached = Attachments(num_pages, count, checked=checked)

    @property
    def num_pages(self) -> int:
        return self._plain.num_pages

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return self._plain.available

    @property
    def in_use(self) -> int:
        """Pages that are out."""
        return self._plain.in_use

    def take(self, count: int) -> bytes | None:
        """As `PageAllocator.take`."""
        return self._plain.take(count)

    def take_one(self) -> int:
        """As `PageAllocator.take_one`."""
        return self._plain.take_one()

    def give(self, pages: PageBytes) -> None:
        """As `PageAllocator.give`; takes back what is attached to the pages too."""
        self._plain.give(pages)
        ids = pages if isinstance(pages, np.ndarray) else np.frombuffer(pages, np.int32)
        self.attached.forget(ids)

    def give_one(self, page: int) -> None:
        """As `PageAllocator.give_one`; takes back what is attached to it too."""
        self._plain.give_one(page)
        self.attached.forget(np.array([page], np.int32))

    def reset(self) -> None:
        """Make every page free again, and every attachment."""
        self._plain.reset()
        self.attached.reset()

    def free_pages(self) -> Int32:
        """Every free id, ascending."""
        return self._plain.free_pages()


class PairedAllocator:
    """Hands out pages of ``bare`` with a pinned window page on each: both, or none."""

    __slots__ = ("attached", "bare")

    def __init__(self, num_pages: int, count: int, *, checked: bool = False) -> None:
        self.bare = AttachedAllocator(num_pages, count, checked=checked)
        self.attached = self.bare.attached

    @property
    def num_pages(self) -> int:
        return self.bare.num_pages

    @property
    def available(self) -> int:
        """Pages that can be taken now with a window page each."""
        return min(self.bare.available, self.attached.available)

    @property
    def in_use(self) -> int:
        """Pages that are out."""
        return self.bare.in_use

    def take(self, count: int) -> bytes | None:
        """Take pages with window pages; None, and nothing taken, when there are too few of either."""
        if count > self.available:
            return None
        pages = self.bare.take(count)
        if pages:
            self.attached.attach(np.frombuffer(pages, np.int32))
        return pages

    def take_one(self) -> int:
        """Take one page with a window page; 0 when there is none of either."""
        if not self.available:
            return 0
        page = self.bare.take_one()
        self.attached.attach_one(page)
        return page

    def give(self, pages: PageBytes) -> None:
        """As `PageAllocator.give`; takes back the window pages too."""
        self.bare.give(pages)

    def give_one(self, page: int) -> None:
        """As `PageAllocator.give_one`; takes back its window page too."""
        self.bare.give_one(page)

    def reset(self) -> None:
        """Make every page free again, and every window page."""
        self.bare.reset()

    def free_pages(self) -> Int32:
        """Every free id, ascending."""
        return self.bare.free_pages()
