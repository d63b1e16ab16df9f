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
    """`KVCacheManager` calls these methods at each of its steps, in the order in which they stand here."""

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
        """How many of the ``most`` tokens that ``requests`` may still produce together need new pages."""
        return most

    def usable(self, pages: Int32) -> int:
        """How many leading pages of a cached prefix can be used, so that these layers can continue after them."""
        return len(pages)

    def hold(self, row: int, matched: Int32, shared: int) -> None:
        """Keep what a request needs of its cached prefix, the first ``shared`` of the matching pages."""

    def let_go(self, row: int) -> None:
        """Undo `hold`: the request was not admitted."""

    def fits(self, needed: int, spare: int) -> bool:
        """Whether a request, after `hold`, can take ``needed`` pages and leave ``spare`` free."""
        return True

    def seat(self, request: Request, own: Int32) -> None:
        """Called when a request has its row; ``own`` are its pages after the cached ones."""

    # -- A pass -----------------------------------------------------------------------------------------------

    def before_pass(self, running: RunningBatch, prefilling: Sequence[Request]) -> None:
        """Release what requests no longer need, before they are given what they need next."""

    def computable(self, request: Request, count: int) -> int:
        """How many of the next ``count`` tokens of a prompt one pass may compute."""
        return count

    def fill(self, batch: ForwardBatch, chunks: Iterable[Chunk]) -> None:
        """Add what these layers read to a batch."""

    # -- Behind it --------------------------------------------------------------------------------------------

    def replaced(self, ours: Int32, theirs: Int32) -> None:
        """Called before a request's pages are given back for cached ones with the same contents."""

    def published(self, request: Request) -> None:
        """Called when the computed part of a request is in the prefix cache."""

    def free(self, request: Request) -> None:
        """Called before a request gives back its row and its pages."""

    def reset(self) -> None:
        """Forget everything. The pages have been reset already."""

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
