"""Tells clients that have closed their sending side and still read from those that are gone.

Both look the same from here: no more comes from them. But a client that is gone refuses whatever is sent to it,
and one that reads skips what means nothing: an interim answer before the answer, or a leading zero of the next
chunk's length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

# Seconds, each after the one before. What is sent first is refused, and what is sent once the refusal is back ends
# the connection. Whoever goes away later is noticed with the answer.
_LOOKS = (0.25, 0.25, 0.5, 1.0, 2.0, 4.0)
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
_ZERO = b"0"


class Lookout:
    """Sends a few bytes that mean nothing, while a client waits for an answer.

    Args:
        loop: that the connection is of.
        answering: the request that is being answered; ``None``: none came yet.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, answering: Callable[[], RequestResponseCycle | None]
    ) -> None:
        self._loop, self._answering = loop, answering
        self._looks: Iterator[float] = iter(_LOOKS)
        self._timer: asyncio.TimerHandle | None = None
        self._later()

    def cancel(self) -> None:
        """Stop sending."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _later(self) -> None:
        seconds = next(self._looks, None)
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        one = self._answering()
        if one is not None and not one.response_complete and not one.transport.is_closing():
            if not one.response_started:
                one.transport.write(_INTERIM)
            elif one.chunked_encoding and one.scope["method"] != "HEAD":
                one.transport.write(_ZERO)
        self._later()
