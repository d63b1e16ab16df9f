"""Bodies and queries that can be read in two ways, or that are no text, are refused by every endpoint.

And so is what there is no room for: each body has a bound, and all of them together.
"""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.routing import Route
from starlette.testclient import TestClient

from devicekit.fleet import Fleet, open_record
from devicekit.fleet.app import create_fleet_app
from devicekit.fleet.http import HttpEndpoint
from devicekit.server.app import ENDPOINTS
from devicekit.server.bodies import Bodies, Body, parse
from devicekit.server.errors import BadRequest, BodyTooLarge, Overloaded
from tests.server.conftest import Server

_JSON = {"Content-Type": "application/json"}
_ROUTES = [
    (method, re.sub(r"\{\w+(:\w+)?\}", "NAME", route.path))
    for one in ENDPOINTS
    for route in one.routes()
    for method in one.methods
]
_UNREADABLE = {
    "a name twice": (b'{"a": 1, "b": 2, "a": 3}', "'a' comes twice"),
    "a name twice, in other letters": (b'{"a": 1, "\\u0061": 3}', "'a' comes twice"),
    "a name twice, deep within": (b'{"a": [{"b": {"c": 1, "c": 1}}]}', "'c' comes twice"),
    "a long name twice": (b'{"%s": 1, "%s": 1}' % (b"a" * 5000, b"a" * 5000), "aaa' comes twice"),
    "half a character": (b'{"a": "\\ud800"}', "surrogates"),
    "half a character, in bytes": (b'{"a": "\xed\xa0\x80"}', "utf-8"),
    "no text": (b'{"a": "\xff"}', "utf-8"),
    "another coding": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "no number": (b'{"a": NaN}', "NaN is not a number"),
    "too many digits": (b'{"a": 1%s}' % (b"0" * 5000), "digits"),
    "too deep": (b'{"a": %s%s}' % (b"[" * 100_000, b"]" * 100_000), "recursion"),
    "a list": (b"[]", "not a JSON object"),
}


def _refused(answer: Any, reason: str) -> None:
    """``answer``: of a client of either kind."""
    document = answer.json()
    message = document["error"]["message"] if "error" in document else document["message"]
    assert (answer.status_code, reason in message) == (400, True), message
    assert len(message) < 400


@pytest.mark.parametrize(("content", "reason"), _UNREADABLE.values(), ids=_UNREADABLE)
def test_what_can_be_read_in_two_ways_or_not_at_all_is_refused(
    shared: Server, content: bytes, reason: str
) -> None:
    for method, path in _ROUTES:
        _refused(shared.http.request(method, path, content=content, headers=_JSON), reason)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"a": {"b": [1, NaN]}}', "NaN is not a number, in 'a.b.1'"),
        (b'{"a": [[], {"x": 1}], "b": {"c": -Infinity}}', "in 'b.c'"),
        (b'{"a": 1, "b": "\\ud800"}', "in 'b'"),
        (b'{"a": {"\\udc00x": 1}}', "in 'a."),
    ],
)
def test_what_is_no_number_or_no_text_is_told_with_its_place(content: bytes, place: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(place)):
        parse(content)


def test_to_find_the_place_takes_no_memory_beside_the_body_itself() -> None:
    content = b'{"a": [' + b"0," * 1_000_000 + b"NaN]}"
    tracemalloc.start()
    with pytest.raises(BadRequest, match=r"a\.1000000"):
        parse(content)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 15 * len(content), f"{most / len(content):.0f} bytes for each byte"


def test_what_a_query_says_twice_is_refused(shared: Server) -> None:
    for one in ENDPOINTS:
        path = re.sub(r"\{\w+(:\w+)?\}", "NAME", one.path)
        if "GET" in one.methods:
            _refused(shared.http.get(f"{path}?a=1&b=2&a=1"), "'a' twice")
        if one.in_query:
            for method in one.methods:
                _refused(shared.http.request(method, f"{path}?a=1", json={"a": 1}), "a is given twice")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[TestClient]:
    """A fleet of an engine that is not there."""
    url = "http://127.0.0.1:9"
    with open_record(tmp_path / "fleet.json", [url]) as record:
        members = Fleet([HttpEndpoint(url)], record)
        with TestClient(create_fleet_app(members, on_close=members.close)) as http:
            yield http


def _verbs(fleet: TestClient) -> list[str]:
    routes = [one for one in fleet.app.routes if isinstance(one, Route)]  # type: ignore[attr-defined]
    return [one.path for one in routes if one.methods == {"POST"}]


@pytest.mark.parametrize(("content", "reason"), _UNREADABLE.values(), ids=_UNREADABLE)
def test_a_fleet_reads_no_other_bodies_than_its_engines(
    fleet: TestClient, content: bytes, reason: str
) -> None:
    assert len(_verbs(fleet)) > 9
    for path in _verbs(fleet):
        _refused(fleet.post(path, content=content, headers=_JSON), reason)


@pytest.mark.parametrize(
    "timeout", [10**400, True, -1, "nan", "1" * 5000, [1] * 1000, {}], ids=lambda one: str(one)[:9]
)
def test_a_fleet_waits_for_no_time_that_is_none(fleet: TestClient, timeout: object) -> None:
    _refused(fleet.post("/drain", json={"timeout": timeout}), "timeout is a number of seconds")


def test_a_fleet_takes_nothing_that_it_does_not_know(fleet: TestClient) -> None:
    for path in ("/update_weights_from_disk", "/fleet/adopt", "/fleet/resume", "/fleet/tend"):
        _refused(fleet.post(path, json={"b" * 5000: 1}), f"{path} knows no")
    _refused(fleet.post("/flush_cache?timeout=1&timeout=2"), "'timeout' is given twice")
    _refused(fleet.post("/flush_cache?timeout=1", json={"timeout": 1}), "'timeout' is given twice")


def test_a_fleet_passes_nothing_over_that_stands_in_a_query(fleet: TestClient) -> None:
    for path in _verbs(fleet):
        if path != "/flush_cache":
            _refused(fleet.post(f"{path}?take_back=true"), "'take_back' belongs in the body")


# -- Room -----------------------------------------------------------------------------------------------------

_SMALL = 64 << 10  # bytes; such bodies have room of their own


def _read(body: Body, parts: Sequence[bytes], announced: str | None = None) -> bytes:
    """Read a body that comes in parts."""
    coming = [
        {"type": "http.request", "body": part, "more_body": at < len(parts)}
        for at, part in enumerate(parts, 1)
    ]

    async def receive() -> dict[str, object]:
        return coming.pop(0)

    headers = [] if announced is None else [(b"content-length", announced.encode())]
    return asyncio.run(body.read(Request({"type": "http", "headers": headers}, receive)))


def test_a_body_longer_than_one_may_be_is_refused_by_what_it_says_or_by_what_comes() -> None:
    bodies = Bodies(100, 1000)
    with bodies.reading() as body:
        assert _read(body, [b" " * 50, b" " * 50], "100") == b" " * 100
    for parts, announced in (([b" " * 50, b" " * 51], None), ([], "101"), ([], "1" + "0" * 30)):
        with bodies.reading() as body, pytest.raises(BodyTooLarge, match="100"):
            _read(body, parts, announced)


def test_all_long_bodies_together_are_bounded_and_make_room_when_they_end() -> None:
    long = [b" " * _SMALL, b" "]
    bodies = Bodies(1 << 20, 3 * (_SMALL + 1))
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(3):
                assert len(_read(stack.enter_context(bodies.reading()), long)) == _SMALL + 1
            with bodies.reading() as body, pytest.raises(Overloaded):
                _read(body, long)
            for _ in range(3):  # beside which short ones find room
                assert len(_read(stack.enter_context(bodies.reading()), [b" " * _SMALL])) == _SMALL


def test_all_short_bodies_together_are_bounded_too() -> None:
    together = 64 << 20
    bodies = Bodies(1 << 20, 1 << 20)
    for _ in range(2):
        with ExitStack() as stack:
            for _ in range(together // _SMALL):
                _read(stack.enter_context(bodies.reading()), [b" " * _SMALL])
            with bodies.reading() as body, pytest.raises(Overloaded):
                _read(body, [b" "])
            with bodies.reading() as body, pytest.raises(Overloaded):  # it is short until more has come
                _read(body, [b" " * _SMALL, b" "])
            assert len(_read(stack.enter_context(bodies.reading()), [b" " * (_SMALL + 1)])) == _SMALL + 1


@pytest.mark.parametrize(
    ("most", "one", "reason"), [(4_000_000, b"0", "values"), (200_000, b"[]", "lists and objects")]
)
def test_a_body_has_so_many_things_in_it_and_not_one_more(most: int, one: bytes, reason: str) -> None:
    around = b'{"a": [%s]}'  # an object and a list are two of them
    inner = parse(around % b",".join([one] * (most - 2 if one == b"[]" else most - 1)))["a"]
    assert isinstance(inner, list)
    with pytest.raises(BadRequest, match=f"holds {most + 1} {reason}; this server reads {most}"):
        parse(around % b",".join([one] * (most - 1 if one == b"[]" else most)))
    text = b"[,{" * (most // 2)  # in a text nothing of it counts
    assert parse(b'{"a": "%s"}' % text) == {"a": text.decode()}
