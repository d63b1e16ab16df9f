"""The waiting queue, in the order its policy wants requests to run.

Every policy is arrival with a bounded head start, so that none of them can starve a request: whatever comes more
than `HEAD_START` places later cannot overtake it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

from devicekit.contract.errors import ConfigurationError
from devicekit.scheduling.request import Request

HEAD_START = 256  # places that one level of priority, or a prompt that is cached whole, is worth
_WINDOW = 128  # how far longest-prefix-first looks: each look is a lookup in the cache

POLICIES = ("fcfs", "priority", "longest_prefix")


class WaitingQueue:
    """Requests without a row. A retracted one goes back to the place its arrival gives it.

    Args:
        policy: ``fcfs``; ``priority``, higher first; or ``longest_prefix``, most cached first.
        cached_tokens: how many leading tokens of a request are in the prefix cache.

    Raises:
        ConfigurationError: there is no such policy.
    """

    def __init__(
        self, policy: str = "fcfs", cached_tokens: Callable[[Request], int] = lambda request: 0
    ) -> None:
        if policy not in POLICIES:
            known = ", ".join(map(repr, POLICIES))
            raise ConfigurationError(f"A scheduling policy is one of {known}, not {policy!r}.")
        self._by_priority = policy == "priority"
        self._by_prefix = policy == "longest_prefix"
        self._cached_tokens = cached_tokens
        self._queue: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in self._queue)

    def add(self, request: Request) -> None:
        """Put a request where the policy wants it."""
        key: float = request.arrival
        if self._by_priority:
            key -= request.priority * HEAD_START
        queue, entry = self._queue, (key, request.arrival, request)
        if not queue or key > queue[-1][0]:
            queue.append(entry)
        else:
            bisect.insort(queue, entry)

    def arrange(self) -> None:
        """Bring the queue in order before a round of admissions, where the order depends on the cache."""
        if not self._by_prefix or len(self._queue) < 2:
            return
        window = [request for _, _, request in self._queue[:_WINDOW]]
        shares = [self._cached_tokens(request) / request.total for request in window]
        self._queue[:_WINDOW] = sorted(
            (request.arrival - share * HEAD_START, request.arrival, request)
            for request, share in zip(window, shares, strict=True)
        )

    def first(self) -> Request | None:
        """The request that runs next; ``None`` if none waits."""
        return self._queue[0][2] if self._queue else None

    def take_first(self) -> Request:
        """Take out the request that runs next."""
        return self._queue.pop(0)[2]

    def remove(self, request: Request) -> None:
        """Take out any request."""
        at = next(at for at, entry in enumerate(self._queue) if entry[2] is request)
        del self._queue[at]
