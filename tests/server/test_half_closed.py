"""Clients that close their side of a connection: those that still read get their answers, others are gone."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Iterator

import pytest

from tests.server.conftest import LONG, Models, Server

_SHORT = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def server(shared: Server, models: Models) -> Iterator[Server]:
    yield shared
    shared.restore(models)


def _request(document: dict[str, object], version: str = "1.1") -> bytes:
    body = json.dumps(document)
    return (
        f"POST /generate HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _connect(server: Server, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    connection.sendall(content)
    return connection


class _Received(socket.socket):
    """A connection of which everything was received."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content
        self.close()

    def makefile(self, *args: object, **options: object) -> io.BytesIO:  # type: ignore[override]
        return io.BytesIO(self._content)


def _answer(connection: socket.socket) -> http.client.HTTPResponse:
    """The next answer, as a client of Python's own reads it."""
    answer = http.client.HTTPResponse(connection, method="POST")
    answer.begin()
    return answer


def _idle(server: Server) -> bool:
    return server.load()["num_total_reqs"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_sent_in_whole_is_answered_in_whole(server: Server, stream: bool) -> None:
    document = {"text": "The sea", "sampling_params": _SHORT}
    expected = server.generate("The sea", **_SHORT)["text"]
    server.post("/pause_generation", {"mode": "in_place"})
    with _connect(server, _request({**document, "stream": stream})) as connection:
        connection.shutdown(socket.SHUT_WR)
        peeked = b""
        while len(peeked) < 2 * len(b"HTTP/1.1 100 Continue\r\n\r\n"):  # it looks more than once
            server.get("/ping")
            peeked = connection.recv(4096, socket.MSG_PEEK)
        server.post("/continue_generation")
        answer = _answer(connection)
        assert answer.status == 200
        content = answer.read()
        assert connection.recv(1) == b""
    if stream:
        *events, last, _ = content.decode().split("\n\n")
        assert last == "data: [DONE]"
        assert json.loads(events[-1].removeprefix("data: "))["text"] == expected
    else:
        assert json.loads(content)["text"] == expected


def test_a_stream_that_stands_still_goes_on(server: Server) -> None:
    document = {"text": "The sea", "sampling_params": LONG, "stream": True, "rid": "still"}
    with _connect(server, _request(document)) as connection:
        received = connection.recv(1)
        server.eventually(lambda: not _idle(server))
        server.post("/pause_generation", {"mode": "in_place"})
        connection.shutdown(socket.SHUT_WR)
        while not received.endswith(b"\r\n00"):  # what it looks with: of the next chunk's length
            received += connection.recv(1 << 16)
        server.post("/abort_request", {"rid": "still"})
        server.post("/continue_generation")
        while more := connection.recv(1 << 16):
            received += more
    *_, last, done, _ = _answer(_Received(received)).read().decode().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["meta_info"]["finish_reason"]["type"] == "abort"
    assert done == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_is_gone_is_noticed_while_nothing_is_generated(server: Server, stream: bool) -> None:
    document = {"text": "The sea", "sampling_params": LONG, "stream": stream}
    with _connect(server, _request(document)) as connection:
        if stream:
            assert _answer(connection).readline().startswith(b"data: ")
        else:
            server.eventually(lambda: not _idle(server))
        server.post("/pause_generation", {"mode": "in_place"})
    server.eventually(lambda: _idle(server))


def test_requests_sent_in_one_go_are_all_answered(server: Server) -> None:
    texts = ("The sea", "The land", "The sky")
    sent = [_request({"text": text, "sampling_params": _SHORT}) for text in texts]
    expected = [server.generate(text, **_SHORT)["text"] for text in texts]
    with _connect(server, b"".join(sent)) as connection:
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while more := connection.recv(1 << 16):
            received += more
    _, *answers = received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").split(b"HTTP/1.1 200 OK\r\n")
    assert [json.loads(one.partition(b"\r\n\r\n")[2])["text"] for one in answers] == expected


@pytest.mark.parametrize(
    "content", [b"", _request({"text": "a"})[:-1], b"GET /ping HTTP/1.1\r\nHost: localhost\r\n"]
)
def test_what_was_not_asked_in_whole_is_not_waited_for(server: Server, content: bytes) -> None:
    with _connect(server, content) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_in_the_older_protocol_whoever_closes_is_gone(server: Server) -> None:
    """Nothing can be sent there to find out, and proxies that speak it hang up when their client does."""
    with _connect(server, _request({"text": "The sea", "sampling_params": LONG}, "1.0")) as connection:
        server.eventually(lambda: not _idle(server))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    server.eventually(lambda: _idle(server))
