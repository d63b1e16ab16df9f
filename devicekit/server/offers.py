"""Reads HTTP/1.1 requests that offer to switch to another protocol as if they made no offer.

A client that prefers HTTP/2 says so in an ordinary request's headers; Java's does so by default. httptools stops
after such headers: it takes the body for the other protocol, and what comes later for the next request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import httptools

_OFFER = frozenset({b"upgrade", b"http2-settings"})  # headers, and what Connection says of them


class Reader(Protocol):
    """The callbacks of httptools while a request is read."""

    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class OfferlessParser:
    """Replaces `httptools.HttpRequestParser`: a request that makes an offer is read as if it made none."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.on_message_begin = reader.on_message_begin
        self.on_url = reader.on_url
        self.on_header = reader.on_header
        self.on_body = reader.on_body
        self._offered = False
        self._begin()

    def _begin(self) -> None:
        parser = httptools.HttpRequestParser(self)
        allow: Callable[..., None] | None = getattr(parser, "set_dangerous_leniencies", None)
        if allow is not None:  # as uvicorn has it: what is sent behind a last request is no fault of that one
            allow(lenient_data_after_close=True)
        self._parser = parser
        self.get_http_version = parser.get_http_version
        self.get_method = parser.get_method
        self.should_keep_alive = parser.should_keep_alive
        self.should_upgrade = parser.should_upgrade

    def feed_data(self, data: bytes) -> None:
        """Read on.

        Raises:
            httptools.HttpParserError: this is no HTTP.
            httptools.HttpParserUpgrade: a tunnel is asked for (CONNECT).
        """
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                if not self._offered:
                    raise
                data = self._head() + data[stop.args[0] :]
                self._offered = False
                self._begin()
            else:
                return

    def on_headers_complete(self) -> None:
        self._offered = self.should_upgrade() and self.get_method() != b"CONNECT"
        if not self._offered:
            self._reader.on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._offered:
            self._reader.on_message_complete()

    def _head(self) -> bytes:
        """The request's line and headers without the offer."""
        line = b"%s %s HTTP/%s" % (self.get_method(), self._reader.url, self.get_http_version().encode())
        return b"\r\n".join([line, *_without_offer(self._reader.headers), b"", b""])


def _without_offer(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    for name, value in headers:
        if name == b"connection":
            value = b", ".join(one for one in value.split(b",") if one.strip().lower() not in _OFFER)
        if name not in _OFFER and (value or name != b"connection"):
            yield name + b": " + value
