"""The waiting queue, in the order its policy wants requests to run."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from devicekit.contract.errors import ConfigurationError
from devicekit.scheduling.request import Request

# Places in the queue that one level of priority is worth. A request can be overtaken by higher priorities only
# until this many later arrivals per level have passed it, so nobody waits for ever.
AGEING = 256


def _by_arrival(request: Request) -> float:
    return request.arrival


def _by_priority(request: Request) -> float:
    return request.arrival - request.priority * AGEING


POLICIES: Mapping[str, Callable[[Request], float]] = MappingProxyType(
    {"fcfs": _by_arrival, "priority": _by_priority}
)


class WaitingQueue:
    """Requests without a row. A retracted one goes back to the place its arrival gives it.

    Raises:
        ConfigurationError: there is no such policy.
    """

    def __init__(self, policy: str = "fcfs") -> None:
        if policy not in POLICIES:
            known = ", ".join(map(repr, POLICIES))
            raise ConfigurationError(f"A scheduling policy is one of {known}, not {policy!r}.")
        self._key = POLICIES[policy]
        self._queue: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in self._queue)

    def add(self, request: Request) -> None:
        """Put a request where the policy wants it."""
        bisect.insort(self._queue, (self._key(request), request.arrival, request))

    def first(self) -> Request:
        """The request that runs next."""
        return self._queue[0][2]

    def take_first(self) -> Request:
        """Take out the request that runs next."""
        return self._queue.pop(0)[2]

    def remove(self, request: Request) -> None:
        """Take out any request."""
        self._queue.remove((self._key(request), request.arrival, request))
