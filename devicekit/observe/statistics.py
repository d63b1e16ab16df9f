"""Current, peak and total bytes and counts of the allocations made under ``watch``, in scopes that nest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from devicekit.observe.allocations import Adaptor, Allocation, settle


@dataclass(slots=True)
class Tally:
    """How much there is now, was at most, and was added altogether."""

    current: int = 0
    peak: int = 0
    total: int = 0

    def add(self, amount: int) -> None:
        self.current += amount
        self.total += amount
        self.peak = max(self.peak, self.current)

    def remove(self, amount: int) -> None:
        self.current -= amount


@dataclass(slots=True)
class AllocationScope:
    """What happened between the two ends of a ``with`` block, all threads that the adaptor watches included.

    Everything counts from zero at the start of the block: freeing what was there before makes ``current``
    negative. After the block the numbers stand still.
    """

    name: str
    bytes: Tally = field(default_factory=Tally)
    count: Tally = field(default_factory=Tally)


class Statistics(Adaptor):
    """Exact counts of what `watch` sees. ``overall`` runs from the start; `scope` opens a further count."""

    def __init__(self) -> None:
        self.overall = AllocationScope("overall")
        self._open: tuple[AllocationScope, ...] = (self.overall,)

    @contextmanager
    def scope(self, name: str = "") -> Iterator[AllocationScope]:
        """Count what happens inside the ``with`` block; scopes nest, and may overlap in several threads."""
        settle()
        scope = AllocationScope(name)
        self._open = (*self._open, scope)
        try:
            yield scope
        finally:
            settle()
            self._open = tuple(one for one in self._open if one is not scope)

    def allocated(self, allocation: Allocation) -> None:
        for scope in self._open:
            scope.bytes.add(allocation.bytes)
            scope.count.add(1)

    def freed(self, allocation: Allocation, at: float) -> None:
        for scope in self._open:
            scope.bytes.remove(allocation.bytes)
            scope.count.remove(1)
