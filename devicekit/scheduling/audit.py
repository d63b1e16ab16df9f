"""Whether every page, row and state slot of a live scheduler has one owner. The answer is data: nothing raises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from devicekit.memory.audit import Conservation
from devicekit.scheduling.errors import SchedulingError


@dataclass(frozen=True, slots=True)
class PoolAudit:
    """The account of every pool."""

    pages: Conservation
    rows: Conservation
    states: Conservation | None = None  # state slots; None: the model has no recurrent layers
    # Pages of layers with a window; None: they have no pool of their own.
    window_pages: Conservation | None = None

    snapshots: Conservation | None = None  # of recurrent states; None: none are kept
    host_pages: Conservation | None = None  # of the prefix cache's second tier; None: it has none

    @property
    def balanced(self) -> bool:
        """Whether every id of every pool is accounted for."""
        return not self.unbalanced

    @property
    def unbalanced(self) -> tuple[str, ...]:
        """Names of the pools in which ids are missing, or held twice."""
        return tuple(name for name, account in self.accounts() if not account.balanced)

    def __str__(self) -> str:
        return "; ".join(f"{name} {_terms(account)}" for name, account in self.accounts())

    def accounts(self) -> Iterator[tuple[str, Conservation]]:
        """Name and account of each pool."""
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
