"""What the pools refuse, each with the facts a caller needs to act.

::

    DeviceKitError
    └── PoolError
        ├── ForeignPage      a page came back that this pool never handed out
        ├── DoubleFree       a page came back that is already free
        ├── PagesInUse       a pool cannot shrink below pages that are still held
        ├── CacheInUse       a prefix cache cannot be reset while prefixes are locked
        ├── StaleNode        a prefix was locked or unlocked that the cache no longer holds
        ├── MemoryReleased   a pool was used while its memory is released
        └── UnknownPolicy    no eviction policy of that name (a ConfigurationError as well)
"""

from __future__ import annotations

from devicekit.contract.errors import ConfigurationError, DeviceKitError
from devicekit.contract.text import shown


class PoolError(DeviceKitError):
    """Root of everything that `devicekit.memory` raises on purpose."""


class MemoryReleased(PoolError):
    """A pool was used while its memory is given back."""


class ForeignPage(PoolError):
    """Pages were given back that this pool never handed out."""

    def __init__(self, pages: tuple[int, ...], num_pages: int) -> None:
        super().__init__(pages, num_pages)
        self.pages = pages
        self.num_pages = num_pages

    def __str__(self) -> str:
        return f"{_ids(self.pages)} given back, but never handed out by this pool of 1..{self.num_pages}"


class DoubleFree(PoolError):
    """Pages were given back that are free already; `pages` is empty when only their number is known."""

    def __init__(self, pages: tuple[int, ...], num_pages: int) -> None:
        super().__init__(pages, num_pages)
        self.pages = pages
        self.num_pages = num_pages

    def __str__(self) -> str:
        if self.pages:
            return f"{_ids(self.pages)} given back while already free in this pool of 1..{self.num_pages}"
        return (
            f"more pages given back than this pool of {self.num_pages} handed out; "
            "build it with checked=True to learn which and where"
        )


class PagesInUse(PoolError):
    """The pool cannot shrink: `in_use` pages above the new size are still held."""

    def __init__(self, in_use: int, num_pages: int, requested: int) -> None:
        super().__init__(in_use, num_pages, requested)
        self.in_use = in_use
        self.num_pages = num_pages
        self.requested = requested

    def __str__(self) -> str:
        return (
            f"cannot shrink from {self.num_pages} to {self.requested} pages: "
            f"{self.in_use} pages above {self.requested} are in use"
        )


class CacheInUse(PoolError):
    """The prefix cache cannot be reset: `protected` of its pages are locked by running requests."""

    def __init__(self, protected: int) -> None:
        super().__init__(protected)
        self.protected = protected

    def __str__(self) -> str:
        return f"cannot reset the prefix cache: {self.protected} of its pages are locked; unlock them first"


class StaleNode(PoolError):
    """A node was used after its prefix was evicted or reset, or unlocked more often than locked."""


class UnknownPolicy(PoolError, ConfigurationError):
    """No eviction policy has this name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name = name
        self.known = known

    def __str__(self) -> str:
        return (
            f"no eviction policy {shown(self.name)}: choose one of {', '.join(self.known)}, or pass a Policy"
        )


def _ids(pages: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, pages[:8]))
    more = f" and {len(pages) - 8} more" if len(pages) > 8 else ""
    return f"page{'s' if len(pages) != 1 else ''} {shown}{more}"
