"""A request's hold on the pools of a model with recurrent layers whose prefixes are cached.

Pages alone do not continue such a model: it takes the state that its recurrent layers had at the end of them. So
while a prompt is computed its state is copied at the last page boundary before its end, and where the prompt
parts from one that is cached. The copy is a snapshot, and hangs on the page that ends there. A prefix is reused as
far as the deepest page with a snapshot. Snapshots that nobody begins with are given up when new ones are taken,
those unused for longest first; with a page that leaves the cache its snapshot goes too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from devicekit.memory.attached_pages import AttachedAllocator
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_records import Insertion
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import ForwardBatch, Int32
from devicekit.scheduling.kv import RequestKV
from devicekit.scheduling.request import Request


@dataclass(slots=True)
class _Prompt:
    """What becomes of a prompt's states while it is computed."""

    begun_with: Int32  # the page whose snapshot it begins with, or none
    start: int  # tokens before it
    marks: list[int]  # lengths at which its state is kept, those ahead
    kept: list[int] = field(default_factory=list)  # places in its row of the pages that have a snapshot of it


class SnapshotKV(RequestKV):
    """Takes and gives rows, pages and state slots for requests, and keeps states for those that come later.

    Snapshots are in the state pool's slots behind those of ``states``.
    """

    def __init__(
        self,
        table: RequestTable,
        pages: AttachedAllocator,
        page_size: int,
        prefix: PrefixCache,
        states: PageAllocator,
    ) -> None:
        super().__init__(table, pages, page_size, prefix, states)
        self.snapshots = pages.attached
        self._cache = prefix
        self._slots = states
        self._prompts: dict[int, _Prompt] = {}  # by row, until they are computed

    def acquire(self, request: Request, namespace: Hashable, spare: int) -> bool:
        """As `RequestKV.acquire`; cached are only pages whose state is known."""
        row = self.table.take_one() if self._slots.available else 0
        if not row:
            return False
        match = self._cache.match(request.tokens[:-1].tobytes(), namespace)
        pages = np.frombuffer(match.pages, np.int32)
        known = np.flatnonzero(self.snapshots.of[pages])
        shared = int(known[-1]) + 1 if len(known) else 0
        if shared < len(pages):
            match = self._cache.shorten(match, shared)
        self._cache.lock(match.node)
        begun_with = pages[max(0, shared - 1) : shared]
        self.snapshots.pin(begun_with)
        own = self._take_evicting(self.pages_for(request.total) - shared, spare)
        if own is None:
            self.snapshots.unpin(begun_with)
            self._cache.unlock(match.node)
            self.table.give_one(row)
            return False
        self._seat(request, row, match.node, namespace, shared, match.pages + own)
        start, size = request.computed, self.page_size
        marks = {len(pages) * size, (request.total - 1) // size * size}
        self._prompts[row] = _Prompt(begun_with, start, sorted(mark for mark in marks if mark > start))
        return True

    def until_mark(self, request: Request) -> int:
        """Tokens up to the next place at which a prompt's state is kept, or to its end."""
        prompt = self._prompts[request.row]
        if request.computed > prompt.start:
            self._let_go(prompt)
        while prompt.marks and prompt.marks[0] <= request.computed:
            del prompt.marks[0]
        return (prompt.marks[0] if prompt.marks else request.total) - request.computed

    def fill(self, batch: ForwardBatch, chunks: Iterable[tuple[Request, int, int]]) -> None:
        """Say which states a pass begins with and which are to be kept at its end."""
        restored: list[tuple[int, int]] = []
        kept: list[tuple[int, int]] = []
        for request, start, end in chunks:
            prompt, slot = self._prompts[request.row], int(self.state_slots[request.row])
            if start == prompt.start and len(prompt.begun_with):
                restored.append((self._slot_of(prompt.begun_with[0]), slot))
            if prompt.marks and end == prompt.marks[0] and not request.private:
                place = end // self.page_size - 1
                page = int(self.table.pages[request.row, place])
                if place in prompt.kept or self.snapshots.attach_one(page):
                    prompt.kept = [*{*prompt.kept, place}]
                    kept.append((slot, self._slot_of(page)))
        batch.restored_states, batch.kept_states = _pairs(restored), _pairs(kept)

    def publish(self, request: Request) -> None:
        """As `RequestKV.publish`; with the snapshots that were taken on the way."""
        super().publish(request)
        prompt = self._prompts.pop(request.row, None)
        if prompt is None:
            return
        self._let_go(prompt)
        self.snapshots.unpin(self.table.pages[request.row, prompt.kept])

    def release(self, request: Request) -> None:
        """As `RequestKV.release`."""
        prompt = self._prompts.pop(request.row, None)
        if prompt is not None:
            self._let_go(prompt)
        super().release(request)

    def pinned(self, request: Request) -> Int32:
        """The pages whose snapshots a request has pinned."""
        prompt = self._prompts.get(request.row)
        if prompt is None:
            return np.empty(0, np.int32)
        return np.concatenate((prompt.begun_with, self.table.pages[request.row, prompt.kept]))

    def reset(self) -> int:
        """As `RequestKV.reset`; with every snapshot."""
        self._prompts.clear()
        return super().reset()

    # -- Parts ------------------------------------------------------------------------------------------------

    def _let_go(self, prompt: _Prompt) -> None:
        self.snapshots.unpin(prompt.begun_with)
        prompt.begun_with = prompt.begun_with[:0]

    def _slot_of(self, page: int) -> int:
        return self._slots.num_pages + int(self.snapshots.of[page])

    def _replace(self, mine: memoryview, done: Insertion) -> None:
        ours, theirs = np.frombuffer(mine, np.int32), np.frombuffer(done.pages, np.int32)
        changed = ours != theirs
        self.snapshots.merge(ours[changed], theirs[changed])
        super()._replace(mine, done)


def _pairs(found: Sequence[tuple[int, int]]) -> Int32 | None:
    return np.array(found, np.int32) if found else None
