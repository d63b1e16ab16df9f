"""Server-sent events: a response that grows while tokens come, and that cleans up when nobody reads it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from devicekit.contract.errors import DeviceKitError
from devicekit.server.errors import error_response

_LONG = 32 << 10  # bytes of an event
_END = b"data: [DONE]\n\n"
# No line ends by the standard, nor need JSON escape them; but clients that cut lines as Python's `str.splitlines`
# does, as httpx's `iter_lines`, would cut a text there.
_TAKEN_FOR_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


class EventStream(StreamingResponse):
    """Sends each document as an event, and ``[DONE]`` at the end.

    An error that comes up in between is an event too: the status has long been sent.

    Args:
        close: called once when the response ends, however it ends.
    """

    def __init__(self, documents: AsyncIterator[Mapping[str, object]], close: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_encode(documents), headers=headers, media_type="text/event-stream")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _encode(documents: AsyncIterator[Mapping[str, object]]) -> AsyncIterator[bytes]:
    size = 0
    try:
        async for document in documents:
            if size > _LONG:  # so was the one before: others wait while it is written
                content = await asyncio.get_running_loop().run_in_executor(None, event, document)
            else:
                content = event(document)
            size = len(content)
            yield content
            # Neither reading what has piled up nor sending it suspends: let others run, a disconnect among them.
            await asyncio.sleep(0)
    except DeviceKitError as error:
        yield event(json.loads(bytes(error_response(error).body)))
    yield _END


def event(document: Mapping[str, object]) -> bytes:
    """One event."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text.translate(_TAKEN_FOR_LINE_ENDS)}\n\n".encode()
