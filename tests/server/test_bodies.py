"""Bodies and queries that can be read in two ways, or that are no text, are refused by every endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from devicekit.fleet import Fleet, open_record
from devicekit.fleet.app import create_fleet_app
from devicekit.fleet.http import HttpEndpoint
from devicekit.server.app import ENDPOINTS
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


def test_what_a_query_says_twice_is_refused(shared: Server) -> None:
    for one in ENDPOINTS:
        if "GET" in one.methods:
            path = re.sub(r"\{\w+(:\w+)?\}", "NAME", one.path)
            _refused(shared.http.get(f"{path}?a=1&b=2&a=1"), "'a' twice")


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
    _refused(fleet.post("/drain?timeout=1&timeout=2"), "'timeout' is given twice")
