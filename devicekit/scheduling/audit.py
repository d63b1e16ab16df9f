"""Has every page, row and state slot of a live scheduler exactly one owner: answered as data, never by raising."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from devicekit.memory.attached_audit import audit_attached
from devicekit.memory.attached_pages import AttachedAllocator
from devicekit.memory.audit import Conservation, audit
from devicekit.scheduling.errors import SchedulingError
from devicekit.scheduling.pools.paired import PairedKV
from devicekit.scheduling.pools.snapshots import SnapshotKV

if TYPE_CHECKING:
    from devicekit.memory.pages import PageAllocator
    from devicekit.scheduling.batch import Int32
    from devicekit.scheduling.request import Request
    from devicekit.scheduling.state import SchedulerState


@dataclass(frozen=True, slots=True)
class PoolAudit:
    """The account of every pool, each by itself."""

    pages: Conservation
    rows: Conservation
    states: Conservation | None = None  # state slots; None: the model has no recurrent layers
    window_pages: Conservation | None = (
        None  # pages of layers with a window; None: they have no pool of their own
    )

    snapshots: Conservation | None = None  # of recurrent states; None: none are kept

    @property
    def balanced(self) -> bool:
        """Nothing is wrong in any pool."""
        return not self.unbalanced

    @property
    def unbalanced(self) -> tuple[str, ...]:
        """Names of the pools in which something is wrong."""
        return tuple(name for name, account in self._pools() if not account.balanced)

    def __str__(self) -> str:
        return "; ".join(f"{name} {_terms(account)}" for name, account in self._pools())

    def _pools(self) -> Iterator[tuple[str, Conservation]]:
        for field in fields(self):
            account = getattr(self, field.name)
            if account is not None:
                yield field.name, account


class PoolsUnbalanced(SchedulingError):
    """A pool lost an id, or gave one to two holders. Raised only by a scheduler that was asked to check."""

    def __init__(self, audit: PoolAudit) -> None:
        super().__init__(audit)
        self.audit = audit

    def __str__(self) -> str:
        return f"{' and '.join(self.audit.unbalanced)} out of balance: {self.audit}"


def audit_pools(state: SchedulerState) -> PoolAudit:
    """Account for every id of every pool. Walks the prefix cache, and sorts all ids: not for every step."""
    for request in state.running.requests:
        state.running.settle(request)
    kv = state.kv
    holders = [*state.running.requests, *state.prefilling]
    rows = np.array([request.row for request in holders], np.int32)
    return PoolAudit(
        pages=audit(kv.pages, owned=_own_pages(state, holders), cache=kv.prefix),
        rows=audit(kv.table.rows, owned=rows),
        states=None if kv.states is None else audit(kv.states, owned=kv.state_slots[rows]),
        window_pages=_pinned(kv, holders) if isinstance(kv, PairedKV) else None,
        snapshots=_pinned(kv, holders) if isinstance(kv, SnapshotKV) else None,
    )


def idle_imbalance(state: SchedulerState) -> bool:
    """Whether a scheduler without requests misses ids. Costs a few additions."""
    kv = state.kv
    cached = 0 if kv.prefix is None else kv.prefix.total  # locked ones too: copies may be under way
    missing = kv.pages.in_use - cached
    hung = kv.pages.attached if isinstance(kv.pages, AttachedAllocator) else None
    pinned = hung is not None and hung.available != hung.total
    return missing != 0 or pinned or _missing(kv.table.rows) or _missing(kv.states)


def _pinned(kv: PairedKV | SnapshotKV, holders: list[Request]) -> Conservation:
    attached = kv.windows if isinstance(kv, PairedKV) else kv.snapshots
    return audit_attached(attached, kv.pages, [kv.pinned(request) for request in holders])


def _own_pages(state: SchedulerState, holders: list[Request]) -> Int32:
    empty = np.empty(0, np.int32)
    return np.concatenate([empty, *(state.kv.owned(request) for request in holders)])


def _missing(pool: PageAllocator | None) -> bool:
    return pool is not None and pool.available != pool.num_pages


def _terms(account: Conservation) -> str:
    text = (
        f"{account.available} available + {account.evictable} evictable + {account.protected} protected "
        f"+ {account.owned} owned of {account.total}"
    )
    if account.leaked:
        text += f", leaked {account.leaked[:8]}"
    if account.doubled:
        text += f", in two places {account.doubled[:8]}"
    return text if account.tree is None or account.tree.sound else f"{text}, prefix cache {account.tree}"
