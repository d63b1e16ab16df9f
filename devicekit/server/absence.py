"""Notices when a client disconnects while its request is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.requests import Request

_gone: ContextVar[asyncio.Future[None] | None] = ContextVar("gone", default=None)


async def disconnect(request: Request) -> None:
    """Wait until the client has disconnected. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@contextmanager
def listening(request: Request) -> Iterator[None]:
    """Listen in this task for the client to disconnect; `gone` tells. The body must have been read."""
    future = asyncio.ensure_future(disconnect(request))
    token = _gone.set(future)
    try:
        yield
    finally:
        _gone.reset(token)
        future.cancel()


def gone() -> asyncio.Future[None] | None:
    """A future that is done when the client of this task's request is gone; ``None``: nobody listens."""
    return _gone.get()
