"""A request that offers another protocol is read as if it made no offer, however it is cut."""

from __future__ import annotations

import json
import random
import socket
from dataclasses import dataclass, replace

import httptools
import pytest

from devicekit.server.offers import OfferlessParser
from tests.seeds import drawn_seed
from tests.server.conftest import Server

SEED = drawn_seed("OFFERS_SEED")
OFFERS = (
    ((b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"AAMAAABk")),
    ((b"upgrade", b"websocket"), (b"connection", b"keep-alive, upgrade"), (b"Sec-WebSocket-Key", b"x")),
    ((b"Upgrade", b"TLS/1.0, HTTP/1.1"), (b"Connection", b"close"), (b"Connection", b"UPGRADE")),
)


@dataclass
class Message:
    start: tuple[object, ...]
    headers: list[tuple[bytes, bytes]]
    body: bytes | None = None


class Reading:
    """What a parser tells of, message by message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.url, self.headers, self.body = b"", [], b""
        self.parser = OfferlessParser(self)

    def on_message_begin(self) -> None:
        self.url, self.headers, self.body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        kind = self.parser.get_method(), self.parser.get_http_version(), self.parser.should_keep_alive()
        self.messages.append(Message((*kind, self.url), self.headers))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages[-1].body = self.body


def read(parts: list[bytes]) -> list[Message]:
    reading = Reading()
    for part in parts:
        reading.parser.feed_data(part)
    return reading.messages


def message(chance: random.Random, offer: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """A request. With another offer and the same chance it is the same but for that."""
    body = chance.choice([b"", b"{}", b"GET /inner HTTP/1.1\r\nHost: a\r\n\r\n", chance.randbytes(40)])
    method = chance.choice([b"POST", b"PUT", b"GET"])
    headers = [(b"Host", b"localhost"), (b"X-Odd", chance.choice([b"", b"a: b", b"\xe9"]))]
    if chance.random() < 0.5:
        headers.append((b"Content-Length", b"%d" % len(body)))
    else:
        headers.append((b"Transfer-Encoding", b"chunked"))
        half = len(body) // 2
        chunks = [b"%x\r\n%s\r\n" % (len(one), one) for one in (body[:half], body[half:]) if one]
        body = b"".join(chunks) + b"0\r\n\r\n"
    at = chance.randrange(len(headers) + 1)
    headers[at:at] = offer
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return b"%s /path?x=%d HTTP/1.1\r\n%s\r\n%s" % (method, chance.randrange(9), lines, body)


def without(messages: list[Message]) -> list[Message]:
    """Messages but for what is left of an offer, or was beside it in the same header."""
    gone = {b"upgrade", b"http2-settings", b"connection", b"sec-websocket-key"}
    return [
        replace(message, headers=[one for one in message.headers if one[0] not in gone])
        for message in messages
    ]


@pytest.mark.parametrize("offer", OFFERS)
def test_it_is_the_request_that_it_would_be_without_however_it_is_cut(
    offer: tuple[tuple[bytes, bytes], ...],
) -> None:
    kept = tuple((name, value) for name, value in offer if value == b"close")
    for seed in range(SEED, SEED + 12):
        plain = without(read([message(random.Random(seed), kept), message(random.Random(seed + 1), kept)]))
        content = message(random.Random(seed), offer) + message(random.Random(seed + 1), offer)
        for cut in range(1, len(content)):
            found = without(read([content[:cut], content[cut:]]))
            assert found == plain, (seed, cut, content)
        assert without(read([content[at : at + 1] for at in range(len(content))])) == plain, (seed, content)


def test_nothing_of_the_offer_is_left_and_the_rest_of_the_header_is() -> None:
    [found] = read(
        [b"GET / HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\n\r\n"]
    )
    assert found.headers == [(b"connection", b"keep-alive")]


def test_a_tunnel_is_none_of_this() -> None:
    with pytest.raises(httptools.HttpParserUpgrade):
        read([b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"])


@pytest.mark.parametrize("pause", [False, True])
def test_a_body_behind_an_offer_is_read_and_is_no_request_of_its_own(shared: Server, pause: bool) -> None:
    expected = shared.generate("a", max_new_tokens=3)["output_ids"]
    body = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 3, "temperature": 0}}).encode()
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in OFFERS[0])
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n" % (lines, len(body))
    last = b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    address = ("127.0.0.1", int(shared.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=30) as connection:
        for part in [head, body, last] if pause else [head + body + last]:
            connection.sendall(part)
        found = b""
        while part := connection.recv(65536):
            found += part
    first, second = (one.partition(b"\r\n\r\n")[2] for one in found.split(b"HTTP/1.1 200 OK")[1:])
    assert json.loads(first)["output_ids"] == expected
    assert json.loads(second) == {"status": "ok"}
