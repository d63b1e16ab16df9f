"""What layers of a special kind add to the KV cache: the interface, whose defaults add nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from devicekit.memory.audit import Conservation
from devicekit.memory.pages import PagePool
from devicekit.scheduling.batch import ForwardBatch, Int32
from devicekit.scheduling.request import Request

if TYPE_CHECKING:
    from devicekit.scheduling.running import RunningBatch

Chunk = tuple[Request, int, int]
"""A request whose tokens from the first number on, up to but not including the second, are computed."""


class LayerCacheManager:
    """Asked by `KVCacheManager` at each of its steps, in the order in which they stand here."""

    restricts = False
    """Whether `usable` may say less than what it is given."""

    fills = False
    """Whether `fill` does anything."""

    name: str | None = None
    """Of its pool, in audits and metrics; ``None``: it has no pool of its own."""

    # -- Admission --------------------------------------------------------------------------------------------

    @property
    def available(self) -> int | None:
        """Pages that can be taken with all that these layers need for each; ``None``: any number."""
        return None

    @property
    def may_start(self) -> bool:
        """Whether there is room for another request, whatever its length."""
        return True

    def remaining_tokens(self, most: int, requests: int) -> int:
        """Of ``most`` tokens that ``requests`` may still produce together, those that will take further pages."""
        return most

    def usable(self, pages: Int32) -> int:
        """How many of a prefix's pages there may be so that these layers can continue behind them."""
        return len(pages)

    def hold(self, row: int, matched: Int32, shared: int) -> None:
        """Keep what a request begins with, whose cached pages are the first ``shared`` of those that match."""

    def let_go(self, row: int) -> None:
        """Undo `hold`: there was no room after all."""

    def fits(self, needed: int, spare: int) -> bool:
        """Whether a request for which `hold` was called can have this many pages, and leave ``spare`` of them."""
        return True

    def seat(self, request: Request, own: Int32) -> None:
        """A request has its row; these are the pages behind the cached ones."""

    # -- A pass -----------------------------------------------------------------------------------------------

    def before_pass(self, running: RunningBatch, prefilling: Sequence[Request]) -> None:
        """Let go of what requests need no more, before they are given what they need next."""

    def computable(self, request: Request, count: int) -> int:
        """How many of the next ``count`` tokens of a prompt one pass may compute."""
        return count

    def fill(self, batch: ForwardBatch, chunks: Iterable[Chunk]) -> None:
        """Add what these layers read to a batch."""

    # -- Behind it --------------------------------------------------------------------------------------------

    def replaced(self, ours: Int32, theirs: Int32) -> None:
        """Pages of a request are about to be given back, in favour of others with the same contents."""

    def published(self, request: Request) -> None:
        """A request's prefix is in the cache, as far as it is computed."""

    def free(self, request: Request) -> None:
        """A request is about to give back its row and its pages."""

    def reset(self) -> None:
        """Everything is forgotten; pages have been reset already."""

    # -- Accounts ---------------------------------------------------------------------------------------------

    @property
    def pool(self) -> PagePool | None:
        """The ids that these layers hand out."""
        return None

    @property
    def at_rest(self) -> bool:
        """Whether nothing is held. Without requests, anything else is a leak."""
        return True

    def audit(self, holders: Sequence[Request]) -> Conservation | None:
        """Account for every id of `pool`, given the requests that hold KV."""
        return None
