"""Finds the requests whose deadline has passed. While there is none, asking costs next to nothing."""

from __future__ import annotations

import heapq

from devicekit.scheduling.request import Request


class Deadlines:
    """Requests with a deadline, the earliest first. One that has ended is removed when its turn comes."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Request]] = []
        self._live: set[int] = set()  # by order of arrival

    def __len__(self) -> int:
        return len(self._live)

    def add(self, request: Request, deadline: float) -> None:
        """Watch a request until ``deadline``, the clock's seconds."""
        request.deadline = deadline
        self._live.add(request.arrival)
        heapq.heappush(self._queue, (deadline, request.arrival, request))

    def discard(self, request: Request) -> None:
        """Forget a request that has ended."""
        self._live.discard(request.arrival)
        if len(self._queue) > 2 * len(self._live) + 64:  # at least half of it has ended
            self._queue = [one for one in self._queue if one[1] in self._live]
            heapq.heapify(self._queue)

    @property
    def next(self) -> float | None:
        """The earliest deadline of a request that has not ended; ``None``: there is none."""
        queue = self._queue
        while queue and queue[0][1] not in self._live:
            heapq.heappop(queue)
        return queue[0][0] if queue else None

    def expired(self, now: float) -> list[Request]:
        """Take out the requests whose deadline has passed, the earliest first."""
        found: list[Request] = []
        while (due := self.next) is not None and now >= due:
            request = heapq.heappop(self._queue)[2]
            self._live.discard(request.arrival)
            found.append(request)
        return found
