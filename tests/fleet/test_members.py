"""Who belongs to a fleet, as gateways and DNS tell it; and engines that answer over HTTP as they should not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.fleet import DnsMembers, UnknownMembers, Unreachable
from devicekit.fleet.gateway import GatewayMembers
from devicekit.fleet.http import HttpEndpoint


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that takes one connection after the other, and says these bytes on them; what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        asked.append(connection.recv(65536))
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked


def http(document: object, status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    # Whoever is not told that the connection ends here may ask again on it before it notices.
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


WORKERS = {
    "workers": [
        {"id": "2", "url": "http://10.0.0.2:30000", "is_healthy": False},
        {"id": "1", "url": "http://10.0.0.1:30000/", "worker_type": "regular"},
    ],
    "total": 2,
}
FOUND = ("http://10.0.0.1:30000", "http://10.0.0.2:30000")


@pytest.mark.parametrize(
    "answers",
    [
        [http(WORKERS)],
        [http({}, "404 Not Found"), http({"urls": [*FOUND]})],
        [http({"workers": []}), http({"urls": [*FOUND, FOUND[0]]})],
    ],
)
def test_a_gateways_workers_are_the_fleet_also_those_that_it_holds_for_ill(answers: list[bytes]) -> None:
    with answering(*answers) as (url, asked):
        assert asyncio.run(GatewayMembers(url, api_key="secret").members()) == FOUND
    assert b"authorization: bearer secret" in asked[0].lower()


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([http({"workers": []}), http({"urls": []})], "lists no workers"),
        ([http({}, "401 Unauthorized")] * 2, "401"),
        ([http(b"<html>")] * 2, "JSON"),
        ([http({"urls": [3]})] * 2, "URLs"),
        ([http([])] * 2, "object"),
        ([b""] * 2, "list_workers"),
    ],
)
def test_a_gateway_that_does_not_say_is_named(answers: list[bytes], why: str) -> None:
    with answering(*answers) as (url, _), pytest.raises(UnknownMembers, match=why):
        asyncio.run(GatewayMembers(url).members())


def test_every_address_of_a_name_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["10.0.0.2", "10.0.0.1", "fd00::1"], ["10.0.0.3"]]

    def resolve(host: str, port: int, *rest: object, **more: object) -> list[object]:
        assert (host, port) == ("engines.default", 30000)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in answers[0] * 2]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    members = DnsMembers.parse("engines.default:30000")
    first = ("http://10.0.0.1:30000", "http://10.0.0.2:30000", "http://[fd00::1]:30000")
    assert asyncio.run(members.members()) == first
    answers.pop(0)
    assert asyncio.run(members.members()) == ("http://10.0.0.3:30000",), "resolved anew"


def test_a_name_that_has_no_address_is_named() -> None:
    with pytest.raises(UnknownMembers, match=r"no-such-host\.invalid"):
        asyncio.run(DnsMembers.parse("no-such-host.invalid:30000").members())


@pytest.mark.parametrize(
    "text", ["", "engines", "engines:", ":30000", "http://engines:30000", "engines:0", "e:x"]
)
def test_what_is_no_name_and_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="name and port"):
        DnsMembers.parse(text)


def ask(url: str, times: int = 1) -> list[object]:
    async def run() -> list[object]:
        endpoint = HttpEndpoint(url)
        try:
            return [await endpoint.call("/server_info", timeout=5) for _ in range(times)]
        finally:
            await endpoint.close()

    return asyncio.run(run())


def test_an_engine_that_answers_twice_answers_one_question_only() -> None:
    twice = http({"weight_version": "v1"}) + http({"weight_version": "stale"})
    with answering(twice, http({"weight_version": "v2"})) as (url, _):
        found = ask(url, 2)
    assert [one.document["weight_version"] for one in found] == ["v1", "v2"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\n\r\n[1]", http([1]), http(b"{"), b"nonsense\r\n\r\n", http(b"[" * 99999)],
)
def test_an_engine_that_answers_nonsense_has_not_answered(answer: bytes) -> None:
    with answering(answer) as (url, _), pytest.raises(Unreachable):
        ask(url)


def test_an_engine_that_answers_a_byte_at_a_time_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()
        ended.set()

    async def run() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        endpoint = HttpEndpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            with pytest.raises(Unreachable, match="has not answered"):
                await endpoint.call("/server_info", timeout=0.1)
        finally:
            await endpoint.close()
            await ended.wait()
            server.close()

    monkeypatch.setattr("devicekit.fleet.http._GRACE", 0.1)
    asyncio.run(asyncio.wait_for(run(), 30))
