"""Web pages, by whatever name and in whatever way they come, do not steer a server; programs do."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from starlette.datastructures import Headers

from devicekit.contract.errors import ConfigurationError
from devicekit.server.app import ENDPOINTS
from devicekit.server.endpoints import Endpoint
from devicekit.server.errors import Forbidden
from devicekit.server.keys import Access
from devicekit.server.origins import Origins, is_loopback
from devicekit.server.settings import ServerSettings
from tests.server.conftest import Serve, Server

ADMIN = {"Authorization": "Bearer admin"}

# Who may call what. An endpoint that is in neither list is a control endpoint: a new one has to be put here to be
# anything else.
OPEN = {"/", "/docs", "/health", "/health_generate", "/metrics", "/openapi.json", "/ping", "/ready"}
USER = {
    "/generate",
    "/get_model_info",
    "/get_server_info",
    "/get_weight_version",
    "/model_info",
    "/server_info",
    "/detokenize",
    "/status",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/detokenize",
    "/v1/tokenize",
    "/v1/completions",
    "/v1/loads",
    "/v1/models",
    "/v1/models/NAME",
    "/weight_version",
}


@pytest.fixture(scope="module")
def locked(serve: Serve) -> Iterator[Server]:
    with serve(api_key="user", admin_api_key="admin") as server:
        yield server


def _paths(endpoint: Endpoint) -> tuple[str, ...]:
    return tuple(re.sub(r"\{\w+(:\w+)?\}", "NAME", path) for path in (endpoint.path, *endpoint.aliases))


ROUTES = [(path, method) for one in ENDPOINTS for path in _paths(one) for method in one.methods]


# -- Every route ----------------------------------------------------------------------------------------------


def test_every_route_of_the_application_is_an_endpoint(shared: Server) -> None:
    routes = shared.get("/openapi.json").json()["paths"]
    assert {
        (re.sub(r"\{\w+\}", "NAME", path), method) for path, methods in routes.items() for method in methods
    } == {(path, method.lower()) for path, method in ROUTES}


@pytest.mark.parametrize(("path", "method"), ROUTES, ids=lambda one: one)
def test_a_route_lets_in_whom_it_is_meant_for(locked: Server, path: str, method: str) -> None:
    # What makes no sense is refused after the key was looked at, and changes nothing.
    nonsense = {"content": b"no JSON"} if path not in OPEN else {}

    def ask(key: str | None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return locked.http.request(method, path, headers=headers, **nonsense).status_code

    if path in OPEN:
        assert {ask(None), ask("wrong"), ask("user"), ask("admin")} == {200}
        return
    assert (ask(None), ask("wrong")) == (401, 401)
    assert (ask("user") == 401) is (path not in USER)
    assert ask("admin") != 401


@pytest.mark.parametrize(("path", "method"), ROUTES, ids=lambda one: one)
def test_a_route_is_closed_to_pages_of_others_and_foreign_names(
    shared: Server, path: str, method: str
) -> None:
    def ask(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return shared.http.request(method, path, headers=named, content=b"no JSON").status_code

    for site in ("cross-site", "same-site"):
        assert (site, ask(Sec_Fetch_Site=site)) == (site, 403)
    for origin in ("http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "http://[", ""):
        assert (origin, ask(Origin=origin)) == (origin, 403)
    for host in (
        "evil.example",
        "evil.example:30000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
    ):
        assert (host, ask(Host=host) == 403) == (host, path not in OPEN)


@pytest.mark.parametrize(
    "path", [path for path, method in ROUTES if method == "GET" and path not in OPEN | USER]
)
@pytest.mark.parametrize(
    "headers",
    [
        {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0"},
        {"Referer": "http://192.168.1.66/page"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
    ids=str,
)
def test_no_link_and_no_image_changes_anything(shared: Server, path: str, headers: dict[str, str]) -> None:
    answer = shared.http.get(path, headers=headers)
    assert answer.status_code == 403


def test_the_servers_own_page_and_programs_are_let_through(shared: Server) -> None:
    own = {"Origin": shared.url, "Sec-Fetch-Site": "same-origin", "User-Agent": "Mozilla/5.0"}
    assert shared.http.post("/flush_cache", headers=own).status_code == 200
    assert shared.http.get("/flush_cache", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert shared.http.get("/flush_cache", headers={"Referer": f"{shared.url}/docs"}).status_code == 200
    assert shared.http.get("/flush_cache", headers={"User-Agent": "python-requests/2.32"}).status_code == 200


def test_a_link_to_the_status_page_may_stand_anywhere(shared: Server) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert shared.http.get("/", headers=link).status_code == 200
    assert shared.http.get("/status", headers=link).status_code == 403


def test_whoever_has_the_key_may_use_any_name(locked: Server) -> None:
    foreign = {"Host": "inference.example.com"}
    assert locked.http.get("/flush_cache", headers={**ADMIN, **foreign}).status_code == 200
    assert (
        locked.http.get("/v1/models", headers={"Authorization": "Bearer user", **foreign}).status_code == 200
    )
    assert locked.http.get("/flush_cache", headers=foreign).status_code == 401


def test_an_open_route_beside_a_key_for_control_is_still_checked(serve: Serve) -> None:
    with serve(admin_api_key="admin") as server:
        assert server.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_two_names_at_once_are_none(shared: Server) -> None:
    with socket.create_connection(
        ("127.0.0.1", int(shared.url.rpartition(":")[2])), timeout=30
    ) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert connection.recv(1000).startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))


# -- What a body is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain;json",
        "x",
    ],
)
def test_what_is_sent_as_something_else_than_json_is_not_read(shared: Server, kind: str) -> None:
    for path, method in ROUTES:
        if method in ("POST", "PUT"):
            answer = shared.http.request(method, path, content=b"{}", headers={"Content-Type": kind})
            assert (path, answer.status_code) == (path, 415)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"]
)
def test_json_by_all_its_names_is_read(shared: Server, kind: str) -> None:
    body = b'{"text": "a", "sampling_params": {"max_new_tokens": 1}}'
    assert shared.http.post("/generate", content=body, headers={"Content-Type": kind}).status_code == 200
    # A request without a body.
    assert shared.http.post("/flush_cache", headers={"Content-Type": "text/plain"}).status_code == 200


# -- Names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:30000", True),
        ("[::1]:30000", True),
        ("LOCALHOST", True),
        ("localhost.:30000", True),
        ("my.localhost", True),
        ("192.168.1.5", True),
        ("intranet", False),
        ("printer.local", False),
        ("localhost.evil.example", False),
        ("evil.example", False),
        ("127.0.0.1.nip.io", False),
        ("127.1", False),
        ("", False),
        ("evil.example:80:80", False),
        ("[evil.example]", False),
    ],
)
def test_names_of_a_server_of_this_machine(host: str, own: bool) -> None:
    assert Origins("127.0.0.1").is_own_host(host) is own
    assert Origins("127.0.0.1", ["*"]).is_own_host(host)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("gpu-7:30000", True),
        ("gpu-7.cluster.internal", True),
        ("engine.default.svc", True),
        ("engine.local", True),
        ("engine.example.com", True),
        ("evil.example.com", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_names_of_a_server_of_a_network(host: str, own: bool) -> None:
    assert Origins("0.0.0.0", ["Engine.Example.COM"]).is_own_host(host) is own


def test_pages_of_the_allowed_origins_call_and_no_others() -> None:
    server = Origins("127.0.0.1", (), ["https://chat.example", "*"])
    server.require_own_page(Headers({"origin": "https://chat.example"}), steering=True)
    for other in ("https://other.example", "null", "*", ""):
        with pytest.raises(Forbidden):
            server.require_own_page(Headers({"origin": other, "host": "localhost:1"}), steering=True)


def test_a_server_of_a_network_has_the_names_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box.example.com")
    monkeypatch.setattr(socket, "getfqdn", lambda: "Box.rack.example.com")
    for name in ("box.example.com", "box.rack.example.com:30000"):
        assert Origins("0.0.0.0").is_own_host(name)
        assert not Origins("127.0.0.1").is_own_host(name), "whose names on the network lead elsewhere"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "gpu-7", ""]))


# -- Pages that may --------------------------------------------------------------------------------------------


def test_a_page_that_was_allowed_may_call_and_is_answered_so_that_its_browser_sees_it(serve: Serve) -> None:
    page = {"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    with serve(allowed_origins=("https://chat.example",)) as server:
        asked = server.http.options("/generate", headers={**page, **preflight})
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, page["Origin"])
        answer = server.http.get("/v1/models", headers=page)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page["Origin"])
        assert server.http.post("/flush_cache", headers=page).status_code == 200
        other = {"Origin": "https://chat.example:8443"}
        assert server.http.post("/flush_cache", headers=other).status_code == 403


def test_all_pages_may_generate_and_none_of_them_control(serve: Serve) -> None:
    page = {"Origin": "https://anything.example", "Sec-Fetch-Site": "cross-site"}
    with serve(allowed_origins=("*",)) as server:
        assert server.http.get("/v1/models", headers=page).status_code == 200
        assert server.http.post("/flush_cache", headers=page).status_code == 403


@pytest.mark.parametrize(
    "origin", ["chat.example", "https://chat.example/", "ftp://x", "null", "https://a@b", ""]
)
def test_what_is_no_origin_is_told_at_once(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="no origin"):
        ServerSettings(allowed_origins=(origin,))


def test_a_request_without_a_host_comes_from_no_browser() -> None:
    Origins("127.0.0.1").require_own_host(Headers({}))
    with pytest.raises(Forbidden):
        Origins("127.0.0.1").require_own_host(Headers({"host": "evil.example"}))


def test_access_is_never_left_to_a_default() -> None:
    assert {one.access for one in ENDPOINTS if {*_paths(one)} <= OPEN} == {Access.OPEN}
    assert {one.access for one in ENDPOINTS if {*_paths(one)} <= USER} == {Access.USER}
    assert {one.access for one in ENDPOINTS if not {*_paths(one)} & (OPEN | USER)} == {Access.CONTROL}
