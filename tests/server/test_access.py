"""Keys, origins and limits."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.conftest import LONG, Serve, Server

USER, ADMIN = {"Authorization": "Bearer user"}, {"Authorization": "Bearer admin"}


@pytest.fixture(scope="module")
def locked(serve: Serve) -> Iterator[Server]:
    with serve(api_key="user", admin_api_key="admin", max_body_bytes=2000) as server:
        yield server


def test_a_server_listens_on_this_machine_only_unless_told_otherwise(shared: Server) -> None:
    assert shared.serving.settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer guess"},
        {"Authorization": "user"},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer user admin"},
        {"Authorization": "Basic dXNlcjphZG1pbg=="},
        {"Authorization": "Bearer \N{SNOWMAN}".encode()},
        {"X-Api-Key": "admin"},
    ],
    ids=str,
)
def test_no_key_or_a_wrong_one_is_401(locked: Server, headers: dict[str, str]) -> None:
    for path in ("/generate", "/v1/completions", "/v1/chat/completions", "/pause_generation"):
        answer = locked.http.post(path, json={}, headers=headers)
        assert (path, answer.status_code) == (path, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "key" in answer.json()["error"]["message"]
    for path in ("/v1/loads", "/v1/models", "/server_info", "/status", "/flush_cache"):
        assert (path, locked.http.get(path, headers=headers).status_code) == (path, 401)


@pytest.mark.parametrize("keys", [("user", "guess"), ("guess", "user"), ("user", "user"), ("user", "admin")])
def test_of_two_keys_none_counts(locked: Server, keys: tuple[str, str]) -> None:
    """Whoever stands before this server may have looked at the other one."""
    sent = [("Authorization", f"Bearer {key}") for key in keys]
    assert locked.http.get("/v1/loads", headers=httpx.Headers(sent)).status_code == 401
    assert locked.http.get("/v1/loads", headers=httpx.Headers(sent[:1])).status_code == (
        200 if keys[0] == "user" else 401
    )


def test_probes_need_no_key(locked: Server) -> None:
    for path in ("/health", "/health_generate", "/ready", "/ping", "/metrics", "/", "/openapi.json", "/docs"):
        assert (path, locked.get(path).status_code) == (path, 200)


def test_the_api_key_generates_and_does_not_control(locked: Server) -> None:
    document = {"text": "a", "sampling_params": {"max_new_tokens": 1}}
    assert locked.http.post("/generate", json=document, headers=USER).status_code == 200
    for path in ("/pause_generation", "/continue_generation", "/flush_cache", "/update_weights_from_disk"):
        assert (path, locked.http.post(path, json={}, headers=USER).status_code) == (path, 401)
    assert locked.get("/ready").status_code == 200


def test_the_admin_key_opens_everything(locked: Server) -> None:
    assert locked.http.get("/flush_cache", headers=ADMIN).status_code == 200
    assert locked.http.get("/v1/loads", headers=ADMIN).status_code == 200


def test_a_key_may_be_of_any_letters(serve: Serve) -> None:
    with serve(api_key="schlüssel") as server:
        headers = {"Authorization": "Bearer schlüssel".encode()}
        assert server.http.get("/v1/models", headers=headers).status_code == 200
        headers = {"Authorization": b"Bearer schlussel"}
        assert server.http.get("/v1/models", headers=headers).status_code == 401


def test_an_admin_key_alone_leaves_generation_open(serve: Serve) -> None:
    with serve(admin_api_key="admin") as server:
        assert server.generate()["output_ids"]
        assert server.get("/flush_cache").status_code == 401


def test_an_api_key_alone_is_the_key_to_control(serve: Serve) -> None:
    with serve(api_key="user") as server:
        assert server.get("/flush_cache").status_code == 401
        assert server.http.get("/flush_cache", headers=USER).status_code == 200


def test_keys_are_not_told(locked: Server) -> None:
    answer = locked.http.get("/server_info", headers=USER)
    assert answer.status_code == 200
    assert "admin" not in answer.text


def test_web_pages_of_other_origins_cannot_steer(shared: Server) -> None:
    for path in ("/flush_cache", "/pause_generation"):
        answer = shared.http.post(path, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
    assert shared.http.get("/flush_cache", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_a_body_that_is_too_long_is_413(locked: Server) -> None:
    answer = locked.http.post("/generate", json={"text": "a" * 3000}, headers=USER)
    assert answer.status_code == 413
    assert "2000" in answer.json()["error"]["message"]


def test_a_body_whose_length_is_not_announced_is_measured(locked: Server) -> None:
    parts = (b"a" * 500 for _ in range(10))
    assert locked.http.post("/generate", content=parts, headers=USER).status_code == 413
    assert locked.get("/health").status_code == 200


def test_more_requests_than_are_taken_are_429_and_control_still_works(serve: Serve) -> None:
    with serve(max_concurrent_requests=2) as server:
        with server.running(), server.running():
            answer = server.post("/generate", {"text": "a"})
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert server.get("/health_generate").status_code == 200
            assert server.post("/pause_generation", {"mode": "in_place"}).status_code == 200
            server.post("/continue_generation")
        server.eventually(lambda: server.load()["num_total_reqs"] == 0)
        assert server.post("/generate", {"text": "a"}).status_code == 200


def test_a_batch_that_never_fits_is_refused_whole(serve: Serve) -> None:
    with serve(max_concurrent_requests=2) as server:
        answer = server.post("/generate", {"text": ["a", "b", "c"], "sampling_params": LONG})
        assert answer.status_code == 400
        assert server.load()["num_total_reqs"] == 0


def test_a_slow_sender_holds_up_nobody(shared: Server) -> None:
    def dribble() -> Iterator[bytes]:
        yield b'{"text": "a", '
        with httpx.Client(base_url=shared.url, trust_env=False) as other:
            assert other.get("/health").status_code == 200
        yield b'"sampling_params": {"max_new_tokens": 1}}'

    assert shared.http.post("/generate", content=dribble()).status_code == 200
