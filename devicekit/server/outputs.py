"""The outputs of requests that were submitted together, as a coroutine reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from devicekit.scheduling.messages import Output


class Outputs:
    """Iterate over it until every request has ended. Whoever stops earlier must `close` it.

    Args:
        ids: of the requests.
        abandon: called with an id when nobody waits for that request any more.
    """

    def __init__(self, ids: Iterable[str], abandon: Callable[[str], None]) -> None:
        self._open = set(ids)
        self._abandon = abandon
        self._queue: asyncio.Queue[Output | BaseException] = asyncio.Queue()

    def put(self, item: Output | BaseException) -> None:
        """Deliver an output, or the reason why there will be none."""
        self._queue.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Raises EngineStopped if the engine ends before the requests do."""
        while self._open:
            item = await self._queue.get()
            if isinstance(item, BaseException):
                self._open.clear()
                raise item
            if item.finish is not None:
                self._open.discard(item.id)
            yield item

    def close(self) -> None:
        """Abort what has not ended. Does nothing when all has."""
        while self._open:
            self._abandon(self._open.pop())
