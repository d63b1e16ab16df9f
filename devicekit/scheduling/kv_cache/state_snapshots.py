"""Models with recurrent layers whose prefixes are cached.

Such a model cannot continue from cached pages alone: it also needs the state that its recurrent layers had at the
end of them. So while a prompt is computed, its state is copied at the last page boundary before its end, and at
the boundary where the prompt departs from a cached one. The copy is a snapshot, and is attached to the page that
ends there. A prefix can be reused as far as its deepest page with a snapshot. When new snapshots need room, those
that no request has begun with for longest are dropped. A page that leaves the cache takes its snapshot with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from devicekit.memory.attached_audit import audit_attached
from devicekit.memory.attached_pages import AttachedAllocator
from devicekit.memory.audit import Conservation
from devicekit.memory.pages import PagePool
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.batch import ForwardBatch, Int32
from devicekit.scheduling.kv_cache.layers import Chunk, LayerCacheManager
from devicekit.scheduling.kv_cache.recurrent_state import RecurrentStateManager
from devicekit.scheduling.request import Request


@dataclass(slots=True)
class _Prompt:
    """The snapshots of one prompt while it is computed."""

    begun_with: Int32  # the page whose snapshot it begins with, or none
    start: int  # tokens before it
    marks: list[int]  # lengths at which its state is kept, those ahead
    kept: list[int] = field(default_factory=list)  # places in its row of the pages that have a snapshot of it


class StateSnapshotManager(LayerCacheManager):
    """Keeps states of requests for later requests with the same prefix.

    Snapshots are in the state pool's slots behind those of ``states``.
    """

    restricts = True
    fills = True
    name = "snapshots"

    def __init__(
        self, table: RequestTable, pages: AttachedAllocator, page_size: int, states: RecurrentStateManager
    ) -> None:
        self.snapshots = pages.attached
        self._table = table
        self._pages = pages
        self._page_size = page_size
        self._states = states
        self._prompts: dict[int, _Prompt] = {}  # by row, until they are computed

    # -- Admission --------------------------------------------------------------------------------------------

    def usable(self, pages: Int32) -> int:
        """Up to the last page whose state is known."""
        known = np.flatnonzero(self.snapshots.of[pages])
        return int(known[-1]) + 1 if len(known) else 0

    def hold(self, row: int, matched: Int32, shared: int) -> None:
        begun_with = matched[max(0, shared - 1) : shared]
        self.snapshots.pin(begun_with)
        size = self._page_size
        self._prompts[row] = _Prompt(begun_with, shared * size, [len(matched) * size])

    def let_go(self, row: int) -> None:
        self._let_go(self._prompts.pop(row))

    def seat(self, request: Request, own: Int32) -> None:
        prompt, size = self._prompts[request.row], self._page_size
        marks = {*prompt.marks, (request.total - 1) // size * size}
        prompt.marks = sorted(mark for mark in marks if mark > prompt.start)

    # -- A pass -----------------------------------------------------------------------------------------------

    def computable(self, request: Request, count: int) -> int:
        """Up to the next place at which a prompt's state is kept."""
        prompt = self._prompts[request.row]
        if request.computed > prompt.start:
            self._let_go(prompt)
        while prompt.marks and prompt.marks[0] <= request.computed:
            del prompt.marks[0]
        return min(count, prompt.marks[0] - request.computed) if prompt.marks else count

    def fill(self, batch: ForwardBatch, chunks: Iterable[Chunk]) -> None:
        """Say which states a pass begins with and which are to be kept at its end."""
        restored: list[tuple[int, int]] = []
        kept: list[tuple[int, int]] = []
        for request, start, end in chunks:
            prompt, slot = self._prompts[request.row], int(self._states.of[request.row])
            if start == prompt.start and len(prompt.begun_with):
                restored.append((self._slot_of(prompt.begun_with[0]), slot))
            if prompt.marks and end == prompt.marks[0] and not request.no_prefix_sharing:
                place = end // self._page_size - 1
                page = int(self._table.pages[request.row, place])
                if place in prompt.kept or self.snapshots.attach_one(page):
                    prompt.kept = [*{*prompt.kept, place}]
                    kept.append((slot, self._slot_of(page)))
        batch.restored_states, batch.kept_states = _pairs(restored), _pairs(kept)

    # -- Behind it --------------------------------------------------------------------------------------------

    def replaced(self, ours: Int32, theirs: Int32) -> None:
        self.snapshots.merge(ours, theirs)

    def published(self, request: Request) -> None:
        """Let all requests use the snapshots that were taken of this one."""
        prompt = self._prompts.pop(request.row, None)
        if prompt is not None:
            self._let_go(prompt)
            self.snapshots.unpin(self._table.pages[request.row, prompt.kept])

    def free(self, request: Request) -> None:
        prompt = self._prompts.pop(request.row, None)
        if prompt is not None:
            self._let_go(prompt)

    def reset(self) -> None:
        self._prompts.clear()

    # -- Accounts ---------------------------------------------------------------------------------------------

    def pinned(self, request: Request) -> Int32:
        """The pages whose snapshots a request has pinned."""
        prompt = self._prompts.get(request.row)
        if prompt is None:
            return np.empty(0, np.int32)
        return np.concatenate((prompt.begun_with, self._table.pages[request.row, prompt.kept]))

    @property
    def pool(self) -> PagePool:
        return self.snapshots.ids

    @property
    def at_rest(self) -> bool:
        return self.snapshots.available == self.snapshots.total

    def audit(self, holders: Sequence[Request]) -> Conservation:
        return audit_attached(self.snapshots, self._pages, [self.pinned(request) for request in holders])

    # -- Parts ------------------------------------------------------------------------------------------------

    def _let_go(self, prompt: _Prompt) -> None:
        self.snapshots.unpin(prompt.begun_with)
        prompt.begun_with = prompt.begun_with[:0]

    def _slot_of(self, page: int) -> int:
        return self._states.slots.num_pages + int(self.snapshots.of[page])


def _pairs(found: Sequence[tuple[int, int]]) -> Int32 | None:
    return np.array(found, np.int32) if found else None
