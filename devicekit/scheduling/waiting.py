"""The waiting queue, in the order its policy wants requests to run.

Every policy is arrival with a bounded head start, so that none of them can starve a request: whatever comes more
than `HEAD_START` places later cannot overtake it.

Adding, taking and removing cost a logarithm of those that wait at most; a step that starts nobody costs nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.scheduling.request import Request

HEAD_START = 256  # places that one level of priority, or a prompt that is cached whole, is worth
_WINDOW = 128  # how far longest-prefix-first looks: each look is a lookup in the cache
_SLACK = 64  # entries of those that have gone, which are not worth clearing away

POLICIES = ("fcfs", "priority", "longest_prefix")

_Entry = tuple[float, int, int, Request]  # place, arrival, number of the entry, and who it is


class WaitingQueue:
    """Requests without a row. A retracted one goes back to the place its arrival gives it.

    Args:
        policy: ``fcfs``; ``priority``, higher first; or ``longest_prefix``, of those that came first the most
            cached first.
        cached_tokens: how many leading tokens of a request are in the prefix cache.
        cache_version: another value whenever ``cached_tokens`` may answer otherwise; default: it always may.

    Raises:
        ConfigurationError: there is no such policy.
    """

    def __init__(
        self,
        policy: str = "fcfs",
        cached_tokens: Callable[[Request], int] = lambda request: 0,
        cache_version: Callable[[], Hashable] = object,
    ) -> None:
        if policy not in POLICIES:
            known = ", ".join(map(repr, POLICIES))
            raise ConfigurationError(f"A scheduling policy is one of {known}, not {shown(policy)}.")
        self._by_priority = policy == "priority"
        self._by_prefix = policy == "longest_prefix"
        self._cached_tokens = cached_tokens
        self._cache_version = cache_version
        self._numbers = itertools.count()
        self._entries: dict[Request, _Entry] = {}  # of those that wait; any other entry is of no account
        self._heap: list[_Entry] = []
        # The rest is for longest-prefix-first alone.
        self._ranked: list[_Entry] = []  # the window, the first to run at the end
        self._latest = 0  # arrival in the window
        self._in_order = False  # the window is full, or has all there are, and nobody has left it
        self._version: Hashable = None  # of the cache, for these:
        self._shares: dict[Request, float] = {}  # how much of a request is cached

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry[3] for entry in sorted(self._entries.values()))

    def add(self, request: Request) -> None:
        """Put a request where the policy wants it."""
        place: float = request.arrival
        if self._by_priority:
            place -= request.priority * HEAD_START
        elif self._in_order and (len(self._ranked) < _WINDOW or request.arrival < self._latest):
            self._in_order = False
        self._push(request, place)

    def _push(self, request: Request, place: float) -> None:
        entry = self._entries[request] = (place, request.arrival, next(self._numbers), request)
        heapq.heappush(self._heap, entry)

    def arrange(self) -> None:
        """Bring the queue in order before a round of admissions, where the order depends on the cache.

        Costs next to nothing while neither the queue's front nor the cache has changed.
        """
        if not self._by_prefix or len(self._entries) < 2:
            return
        version = self._cache_version()
        if version != self._version:
            self._version, self._in_order = version, False
            self._shares.clear()
        if not self._in_order:
            self._rank()

    def _rank(self) -> None:
        """Take those that came first into the window, and order them by what is cached of them."""
        for entry in self._ranked:
            if self._waits(entry):
                self._push(entry[3], entry[1])
        window: list[_Entry] = []
        self._ranked = window
        shares = self._shares
        while len(window) < _WINDOW and (found := self._next()) is not None:
            _, arrival, number, request = found
            if (share := shares.get(request)) is None:
                share = shares[request] = self._cached_tokens(request) / request.total
            heapq.heappop(self._heap)
            self._latest = arrival
            entry = self._entries[request] = (arrival - share * HEAD_START, arrival, number, request)
            window.append(entry)
        window.sort(reverse=True)
        self._in_order = True

    def first(self) -> Request | None:
        """The request that runs next; ``None`` if none waits."""
        entry = self._first()
        return None if entry is None else entry[3]

    def remove(self, request: Request) -> None:
        """Take out any request.

        Raises:
            KeyError: it does not wait.
        """
        del self._entries[request]
        if self._by_prefix:
            self._shares.pop(request, None)
            if request.arrival <= self._latest:
                self._in_order = False
        if not self._entries:
            self._heap.clear()
            self._ranked.clear()
        elif len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._heap = [entry for entry in self._heap if self._waits(entry)]
            heapq.heapify(self._heap)

    def _waits(self, entry: _Entry) -> bool:
        return self._entries.get(entry[3]) is entry

    def _first(self) -> _Entry | None:
        entry, ranked = self._next(), self._ranked
        if not ranked:
            return entry
        while ranked and not self._waits(ranked[-1]):
            ranked.pop()
        if ranked and (entry is None or ranked[-1] < entry):
            return ranked[-1]
        return entry

    def _next(self) -> _Entry | None:
        """The first of those outside the window."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            if entries.get(entry[3]) is entry:
                return entry
            heapq.heappop(heap)
        return None
