"""What the pools refuse, each with the facts a caller needs to act.

::

    PoolError
    ├── ForeignPage      a page came back that this pool never handed out
    ├── DoubleFree       a page came back that is already free
    ├── PagesInUse       a pool cannot shrink below pages that are still held
    ├── CacheInUse       a prefix cache cannot be reset while prefixes are locked
    ├── StaleNode        a prefix was locked or unlocked that the cache no longer holds
    └── UnknownPolicy    no eviction policy of that name
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class PoolError(Exception):
    """Root of everything that `devicekit.memory` raises on purpose."""


class ForeignPage(PoolError):
    """Pages were given back that this pool never handed out."""

    def __init__(self, pages: Sequence[int], num_pages: int) -> None:
        self.pages = tuple(pages)
        self.num_pages = num_pages
        super().__init__(f"{_ids(pages)} given back, but never handed out by this pool of 1..{num_pages}")


class DoubleFree(PoolError):
    """Pages were given back that are free already; `pages` is empty when only their number is known."""

    def __init__(self, pages: Sequence[int], num_pages: int) -> None:
        self.pages = tuple(pages)
        self.num_pages = num_pages
        what = _ids(pages) if pages else f"more than the pool's {num_pages} pages"
        super().__init__(
            f"{what} given back while already free; build the pool with checked=True to find where"
        )


class PagesInUse(PoolError):
    """The pool cannot shrink: `in_use` pages above the new size are still held."""

    def __init__(self, in_use: int, num_pages: int, requested: int) -> None:
        self.in_use = in_use
        self.num_pages = num_pages
        self.requested = requested
        super().__init__(
            f"cannot shrink from {num_pages} to {requested} pages: "
            f"{in_use} pages above {requested} are in use"
        )


class CacheInUse(PoolError):
    """The prefix cache cannot be reset: `protected` of its pages are locked by running requests."""

    def __init__(self, protected: int) -> None:
        self.protected = protected
        super().__init__(
            f"cannot reset the prefix cache: {protected} of its pages are locked; unlock them first"
        )


class StaleNode(PoolError):
    """A node was used after its prefix was evicted or reset, or unlocked more often than locked."""


class UnknownPolicy(PoolError, ValueError):
    """No eviction policy has this name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"no eviction policy {name!r}; choose one of {', '.join(known)}, or pass a function")


def _ids(pages: Sequence[int]) -> str:
    shown = ", ".join(map(str, pages[:8]))
    more = f" and {len(pages) - 8} more" if len(pages) > 8 else ""
    return f"page{'s' if len(pages) != 1 else ''} {shown}{more}"
