"""Requests that come before others are answered: each has its turn, and is kept as the bytes that it came as.

A request that was understood takes many times what it took on the wire, and one packet may hold thousands.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_AT_ONCE = 4 << 10  # bytes that are understood before the requests in them are answered
_MOST_KEPT = 64 << 10  # bytes, and what is read at once: with more waiting, nothing is read


class InTurnProtocol(HttpToolsProtocol):
    """A connection whose client may send requests in one go."""

    running: RequestResponseCycle | None = None
    """The request that was answered last, or is being answered; ``cycle`` is the one that was understood last."""

    _ended = False  # nothing more comes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._kept = bytearray()
        self.flow: _Flow = _Flow(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.running is not None:
            self.cycle = self.running  # uvicorn tells that one; what is behind it is never answered
        super().connection_lost(exc)
        self._kept.clear()

    def data_received(self, data: bytes) -> None:
        self._kept += data
        self._read_on()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it: whether the connection stays
        self._ended = True
        return bool(self._kept) or self.stays_open()

    def on_headers_complete(self) -> None:
        waiting = len(self.pipeline)
        super().on_headers_complete()
        if len(self.pipeline) == waiting:
            self.running = self.cycle

    def on_response_complete(self) -> None:
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if following is not None and not self.transport.is_closing():
            self.running = following
        self._read_on()

    def understand(self, data: bytes) -> None:
        """Take up a part of what came."""
        super().data_received(data)

    def stays_open(self) -> bool:
        """Whether there is something to do yet for a client that sends nothing more."""
        return False

    def _read_on(self) -> None:
        while self._kept and not self.pipeline and not self.transport.is_closing():
            part = bytes(self._kept[:_AT_ONCE])
            del self._kept[:_AT_ONCE]
            self.understand(part)
        self.flow.hold(len(self._kept) > _MOST_KEPT)
        if self._ended and not self._kept and not self.transport.is_closing() and not self.stays_open():
            self.transport.close()


class _Flow(FlowControl):
    """Reading goes on once it is not held, whoever asked for it meanwhile: uvicorn does for every request."""

    _held = False
    _wanted = True

    def hold(self, held: bool) -> None:
        self._held = held
        if held:
            super().pause_reading()
        elif self._wanted:
            super().resume_reading()

    def pause_reading(self) -> None:
        self._wanted = False
        super().pause_reading()

    def resume_reading(self) -> None:
        self._wanted = True
        if not self._held:
            super().resume_reading()
