"""The outputs of requests that were submitted together, for a coroutine to read.

Tokens that came as columns become objects here: one for all that a stream has gained since the last look.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from devicekit.scheduling.messages import Output, increment
from devicekit.scheduling.token_columns import Stream


@dataclass(slots=True)
class _Gained:
    """What a stream has gained since the last look."""

    stream: Stream
    tokens: list[int]
    output_tokens: int  # so far, these included


class Outputs:
    """Iterate over it until every request has ended. A caller that stops earlier must `close` it.

    Args:
        ids: of the requests.
        abandon: called with an id when nobody waits for that request any more.
    """

    def __init__(self, ids: Iterable[str], abandon: Callable[[str], None]) -> None:
        self._open = set(ids)
        self._abandon = abandon
        self._queue: asyncio.Queue[Output | _Gained | BaseException] = asyncio.Queue()
        self._gained: dict[str, _Gained] = {}  # by id, of those that are in the queue

    def gain(self, stream: Stream, tokens: list[int], output_tokens: int) -> None:
        """Deliver tokens of a stream that goes on."""
        gained = self._gained.get(stream.id)
        if gained is None:
            gained = self._gained[stream.id] = _Gained(stream, tokens, output_tokens)
            self._queue.put_nowait(gained)
        else:
            gained.stream, gained.output_tokens = stream, output_tokens
            gained.tokens += tokens

    def put(self, item: Output | BaseException) -> None:
        """Deliver an output, or the reason why there will be none."""
        self._queue.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Raises EngineStopped if the engine ends before the requests do."""
        while self._open:
            item = await self._queue.get()
            if isinstance(item, _Gained):
                del self._gained[item.stream.id]
                yield increment(item.stream, tuple(item.tokens), item.output_tokens)
                continue
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
