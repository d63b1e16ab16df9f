"""The page allocator: hands out page ids and takes them back in a fraction of a microsecond.

Ids are int32, 1 to `num_pages`; 0 is padding and is never handed out. Many ids travel as `bytes`
(native int32, four bytes an id): they concatenate, cut and store without conversion, so the same object
goes from the allocator to the prefix cache to a page table. Request rows and state slots are ids too and
use the same class.

Free ids are a stack in one flat buffer, the last one given back is the next one taken. Ids that were never
handed out are only a range, so building and resetting an allocator costs the same at any size and memory
that is never needed is never touched. Single ids pass through a short Python list in front of the stack,
which is the cheapest thing there is for one integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from devicekit.memory import page_ids
from devicekit.memory.errors import DoubleFree, ForeignPage, PagesInUse
from devicekit.ranges import MOST_IDS, whole

Int32 = npt.NDArray[np.int32]
PageBytes = bytes | memoryview | Int32

_ID = page_ids.WIDTH
_FRESH = 256  # ids moved from the never-used range to the stack at once
_SINGLES = 64  # ids moved between the stack and the list of single ids at once


class PagePool(Protocol):
    """A pool that hands out page ids and takes them back: what a prefix cache and an audit need of it."""

    @property
    def num_pages(self) -> int: ...

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        ...

    @property
    def in_use(self) -> int:
        """Pages that are out."""
        ...

    def take(self, count: int) -> bytes | None:
        """Take pages, as native int32 bytes; None, and nothing taken, when fewer are available."""
        ...

    def give(self, pages: PageBytes) -> None:
        """Give pages back."""
        ...

    def reset(self) -> None:
        """Make every page free again, whoever holds it."""
        ...

    def free_pages(self) -> Int32:
        """Every free id, ascending. For audits and metrics: costs a sort."""
        ...


@dataclass(frozen=True, slots=True)
class PageState:
    """Which pages were free at the time of `PageAllocator.save`."""

    num_pages: int
    fresh: int  # lowest id never handed out
    free: bytes  # ids given back, native int32
    taken: bytes | None  # one byte a page, of a checked allocator


class PageAllocator:
    """Hands out the page ids 1 to `num_pages`.

    With ``checked=True`` every page that comes back is verified to be out: `ForeignPage` and `DoubleFree`
    name the culprits before anything changes. Without it only a pool that overflows notices (`DoubleFree`).
    """

    __slots__ = ("_fresh", "_num_pages", "_singles", "_stack", "_top", "_view")

    def __new__(cls, num_pages: int, *, checked: bool = False) -> PageAllocator:
        # Checking lives in a subclass so that the unchecked path does not even test for it.
        return super().__new__(_CheckedAllocator if checked else cls)

    def __init__(self, num_pages: int, *, checked: bool = False) -> None:
        whole("num_pages", num_pages, most=MOST_IDS)
        self._num_pages = num_pages
        self._stack: Int32 = np.empty(num_pages, np.int32)
        self._view = _byte_view(self._stack)
        self._top = 0  # in bytes
        self._fresh = 1
        self._singles: list[int] = []

    @property
    def num_pages(self) -> int:
        return self._num_pages

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return self._top // _ID + len(self._singles) + self._num_pages + 1 - self._fresh

    @property
    def in_use(self) -> int:
        """Pages that are out."""
        return self._num_pages - self.available

    def take(self, count: int) -> bytes | None:
        """Take `count` pages, as native int32 bytes; None, and nothing taken, when fewer are available."""
        end = self._top
        start = end - count * _ID
        if not 0 <= start <= end:
            if not self._gather(count):
                return None
            end = self._top
            start = end - count * _ID
        self._top = start
        return self._view[start:end].tobytes()

    def take_array(self, count: int) -> Int32 | None:
        """Like `take`, as a writable int32 array of its own."""
        pages = self.take(count)
        return None if pages is None else np.frombuffer(bytearray(pages), np.int32)

    def take_one(self) -> int:
        """Take one page; 0 when none is available."""
        try:
            return self._singles.pop()
        except IndexError:
            return self._take_one_from_stack()

    def give(self, pages: PageBytes) -> None:
        """Give pages back: int32 bytes, or a contiguous int32 array.

        Raises `DoubleFree` when more come back than the pool has, ValueError for bytes that are not whole
        ids, TypeError for an array of another type.
        """
        if type(pages) is not bytes:
            pages = _as_bytes(pages)
        start = self._top
        end = start + len(pages)
        if end % _ID:
            raise ValueError(f"{len(pages)} bytes are not whole int32 page ids")
        try:
            self._view[start:end] = pages
        except ValueError:
            raise DoubleFree((), self._num_pages) from None
        self._top = end

    def give_one(self, page: int) -> None:
        """Give one page back."""
        singles = self._singles
        singles.append(page)
        if len(singles) > 2 * _SINGLES:
            self._spill(_SINGLES)

    def reset(self) -> None:
        """Make every page free again, whoever holds it. Costs the same at any size."""
        self._top = 0
        self._fresh = 1
        self._singles = []

    def save(self) -> PageState:
        """Remember which pages are free; costs a copy of the ids that were given back so far."""
        self._spill(len(self._singles))
        return PageState(self._num_pages, self._fresh, self._view[: self._top].tobytes(), None)

    def restore(self, state: PageState) -> None:
        """Return to a saved state. ValueError when the pool had another size then."""
        if state.num_pages != self._num_pages:
            raise ValueError(f"state is of {state.num_pages} pages, this pool has {self._num_pages}")
        self._top = len(state.free)
        self._view[: self._top] = state.free
        self._fresh = state.fresh
        self._singles = []

    def resize(self, num_pages: int) -> None:
        """Grow, or shrink when every page above the new size is free; else raise `PagesInUse`."""
        whole("num_pages", num_pages, most=MOST_IDS)
        self._spill(len(self._singles))
        free = self._stack[: self._top // _ID]
        kept = free if num_pages >= self._num_pages else free[free <= num_pages]
        handed_out_above = max(0, self._fresh - 1 - num_pages)
        in_use = handed_out_above - (len(free) - len(kept))
        if in_use > 0:
            raise PagesInUse(in_use, self._num_pages, num_pages)
        stack = np.empty(num_pages, np.int32)
        stack[: len(kept)] = kept
        self._stack, self._view, self._top = stack, _byte_view(stack), len(kept) * _ID
        self._fresh = min(self._fresh, num_pages + 1)
        self._num_pages = num_pages

    def free_pages(self) -> Int32:
        """Every free id, ascending. For audits and metrics: costs a sort."""
        given = self._stack[: self._top // _ID]
        singles = np.array(self._singles, np.int32)
        fresh = np.arange(self._fresh, self._num_pages + 1, dtype=np.int32)
        return np.sort(np.concatenate((given, singles, fresh)))

    def largest_free_run(self) -> int:
        """The longest run of consecutive free ids: against `available`, how fragmented the pool is."""
        return largest_free_run(self)

    def _gather(self, count: int) -> bool:
        """Bring `count` ids onto the stack; False, and nothing moved, when fewer are available."""
        if count < 0:
            raise ValueError(f"cannot take {count} pages")
        if count > self.available:
            return False
        self._spill(len(self._singles))
        missing = count - self._top // _ID
        if missing > 0:
            fresh = self._fresh
            stop = min(fresh + max(missing, _FRESH), self._num_pages + 1)
            at = self._top // _ID
            # Descending, so that the lowest ids leave first and a pool that was never full can shrink.
            self._stack[at : at + stop - fresh] = np.arange(stop - 1, fresh - 1, -1, dtype=np.int32)
            self._top += (stop - fresh) * _ID
            self._fresh = stop
        return True

    def _take_one_from_stack(self) -> int:
        count = min(_SINGLES, self.available)
        if not count:
            return 0
        if self._top < count * _ID:
            self._gather(count)
        at = self._top // _ID
        self._singles = self._stack[at - count : at].tolist()
        self._top -= count * _ID
        return self._singles.pop()

    def _spill(self, count: int) -> None:
        """Move the `count` oldest single ids onto the stack."""
        singles = self._singles
        at = self._top // _ID
        try:
            self._stack[at : at + count] = singles[:count]
        except ValueError:
            raise DoubleFree((), self._num_pages) from None
        self._top += count * _ID
        del singles[:count]


class _CheckedAllocator(PageAllocator):
    """A `PageAllocator` that knows which pages are out."""

    __slots__ = ("_taken",)

    def __init__(self, num_pages: int, *, checked: bool = True) -> None:
        super().__init__(num_pages)
        self._taken: npt.NDArray[np.bool_] = np.zeros(num_pages + 1, np.bool_)

    def take(self, count: int) -> bytes | None:
        pages = super().take(count)
        if pages is not None:
            self._taken[np.frombuffer(pages, np.int32)] = True
        return pages

    def take_one(self) -> int:
        page = super().take_one()
        self._taken[page] = page != 0
        return page

    def give(self, pages: PageBytes) -> None:
        if type(pages) is not bytes:
            pages = _as_bytes(pages)
        self._check(np.frombuffer(pages, np.int32))
        super().give(pages)

    def give_one(self, page: int) -> None:
        self._check(np.array([page], np.int64))
        super().give_one(page)

    def reset(self) -> None:
        super().reset()
        self._taken = np.zeros(self._num_pages + 1, np.bool_)

    def save(self) -> PageState:
        state = super().save()
        return PageState(state.num_pages, state.fresh, state.free, self._taken.tobytes())

    def restore(self, state: PageState) -> None:
        if state.taken is None:
            raise ValueError("state was saved by an allocator that does not check")
        super().restore(state)
        self._taken = np.frombuffer(bytearray(state.taken), np.bool_)

    def resize(self, num_pages: int) -> None:
        super().resize(num_pages)
        taken = np.zeros(num_pages + 1, np.bool_)
        kept = min(len(taken), len(self._taken))
        taken[:kept] = self._taken[:kept]
        self._taken = taken

    def _check(self, pages: npt.NDArray[np.int32] | npt.NDArray[np.int64]) -> None:
        foreign = pages[(pages < 1) | (pages >= self._fresh)]
        if len(foreign):
            raise ForeignPage(tuple(foreign.tolist()), self._num_pages)
        ids, counts = np.unique(pages, return_counts=True)
        twice = ids[(counts > 1) | ~self._taken[ids]]
        if len(twice):
            raise DoubleFree(tuple(twice.tolist()), self._num_pages)
        self._taken[ids] = False


def largest_free_run(pool: PagePool) -> int:
    """The longest run of consecutive free ids of any pool: against `available`, how fragmented it is."""
    free = pool.free_pages()
    if not len(free):
        return 0
    breaks = np.flatnonzero(np.diff(free) != 1) + 1
    edges = np.concatenate(([0], breaks, [len(free)]))
    return int(np.diff(edges).max())


def _byte_view(stack: Int32) -> memoryview:
    # A view with a zero in its shape cannot be cast.
    return stack.data.cast("B") if len(stack) else memoryview(bytearray())


def _as_bytes(pages: PageBytes) -> bytes:
    if isinstance(pages, np.ndarray) and pages.dtype != np.int32:
        raise TypeError(f"page ids are int32, got {pages.dtype}")
    return bytes(pages)
