"""What clients send in one go, and how they address it: taken up in turn, or refused if others may misread it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.server.conftest import LONG, Models, Serve, Server


def _connect(server: Server, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30)
    connection.sendall(content)
    return connection


def _request(path: str, document: object = None, *, host: bytes = b"localhost") -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    head = b"%s %s HTTP/1.1\r\nHost: %s\r\n" % (b"POST" if body else b"GET", path.encode(), host)
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def _read(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


_SPLIT = {"GET": 27, "one by one": 1, "at once": 1 << 20, "odd": 4099}


@pytest.mark.parametrize("size", _SPLIT.values(), ids=_SPLIT)
def test_thousands_of_requests_in_one_go_are_each_answered_in_order(shared: Server, size: int) -> None:
    """Whatever the pieces in which they come, and although nobody reads the answers before all are sent."""
    count = 400 if size == 1 else 3000
    wanted = [b"/ping", b"/v1/none", b"/model_info"]
    sent = b"".join(_request(wanted[at % 3].decode()) for at in range(count))
    with _connect(shared, b"") as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), size):
            connection.sendall(sent[at : at + size])
        connection.shutdown(socket.SHUT_WR)
        found = _read(connection)
    status = [one[:3] for one in found.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").split(b"HTTP/1.1 ")[1:]]
    assert status == [(b"200", b"404", b"200")[at % 3] for at in range(count)]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_requests_that_wait_for_another_take_little_more_than_their_bytes(
    serve: Serve, models: Models
) -> None:
    """The client asks for an answer that does not come, and goes on asking; others are served meanwhile."""
    count, begun = 30, _request("/generate", {"text": "a", "sampling_params": LONG})
    with serve() as server:
        server.post("/pause_generation", {"mode": "in_place"})
        before, sent, waiting = _resident(), 0, []
        try:
            for _ in range(count):
                waiting.append(connection := _connect(server, begun))
                connection.setblocking(False)
                many = memoryview(_request("/ping") * 20_000)
                for _ in range(50):
                    try:
                        sent += (took := connection.send(many))
                        many = many[took:]
                    except BlockingIOError:
                        server.get("/ping")
            server.eventually(lambda: server.load()["num_total_reqs"] == count)
            grown = _resident() - before
        finally:
            for connection in waiting:
                connection.close()
            server.post("/continue_generation")
    assert sent > count * 100_000
    assert grown < count * (1 << 20), f"{grown} bytes for {sent} that were sent"


@pytest.mark.parametrize("behind", [b"", _request("/ping"), _request("/ping") * 9, b"GET /pi"])
@pytest.mark.parametrize("half", [False, True], ids=["hangs up", "closes its side first"])
def test_who_hangs_up_with_more_asked_for_behind_is_noticed(serve: Serve, behind: bytes, half: bool) -> None:
    with serve() as server:
        server.post("/pause_generation", {"mode": "in_place"})
        waits = _request("/generate", {"text": "a", "sampling_params": LONG})
        with _connect(server, waits + behind) as connection:
            server.eventually(lambda: server.load()["num_total_reqs"] == 1)
            if half:
                connection.shutdown(socket.SHUT_WR)
        server.eventually(lambda: server.load()["num_total_reqs"] == 0)


@pytest.mark.parametrize(
    "host",
    [
        *(b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n", b"Host: a/flush_cache?\r\n", b"Host: a#\r\n"),
        *(b"Host: a@b\r\n", b"Host: [\r\n", b"Host: [::1\r\n", b"Host: a:b\r\n", b"Host: a:1:2\r\n"),
        *(b"Host: a:123456\r\n", b"Host: \xff\r\n", b"Host: a\\b\r\n", b"Host: a?b\r\n", b"Host: [x]y\r\n"),
    ],
)
def test_a_request_says_in_one_way_for_whom_it_is(shared: Server, host: bytes) -> None:
    with _connect(shared, b"GET /ping HTTP/1.1\r\n" + host + b"\r\n" + _request("/ping")) as connection:
        found = _read(connection)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"one Host header" in found


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:1",
        b"127.0.0.1:",
        b"[::1]:8",
        b"[fe80::1%25eth0]",
        b"gpu_7.lan",
        b"xn--a.de",
        b"",
    ],
)
def test_every_form_of_a_name_is_one(shared: Server, host: bytes) -> None:
    with _connect(shared, _request("/ping", host=host)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_what_is_older_says_it_or_not(shared: Server) -> None:
    with _connect(shared, b"GET /ping HTTP/1.0\r\n\r\n") as connection:
        assert _read(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("version", "coding"),
    [
        *(
            (b"1.1", one)
            for one in (b"gzip, chunked", b"chunked, chunked", b"identity", b"\x0bchunked", b"xchunked")
        ),
        (b"1.1", b"chunked\r\nTransfer-Encoding: chunked"),
        (b"1.0", b"chunked"),
    ],
)
def test_a_body_is_coded_in_one_way_only(shared: Server, version: bytes, coding: bytes) -> None:
    body = b'{"text": "a", "sampling_params": {"max_new_tokens": 1}}'
    head = b"POST /generate HTTP/%s\r\nHost: a\r\nTransfer-Encoding: %s\r\n\r\n" % (version, coding)
    with _connect(shared, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)) as connection:
        found = _read(connection)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1 ") == 1


def test_what_is_no_http_behind_a_request_is_not_written_into_its_answer(serve: Serve) -> None:
    with serve() as server:
        waits = _request("/generate", {"text": "a", "stream": True, "sampling_params": LONG})
        with _connect(server, waits) as connection:
            begun = b""
            while b"data: " not in begun:
                begun += connection.recv(65536)
            server.post("/pause_generation", {"mode": "in_place"})
            connection.sendall(b"\x16\x03\x01\r\n\r\n")
            found = begun + _read(connection)
        assert found.count(b"HTTP/1.1 ") == 1
        server.post("/continue_generation")
