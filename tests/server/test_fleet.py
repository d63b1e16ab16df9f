"""A fleet over real servers: steered from the command line and over HTTP."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from devicekit.cli import main
from devicekit.fleet import Fleet, open_record
from devicekit.fleet.app import create_fleet_app
from devicekit.fleet.http import HttpEndpoint
from devicekit.server.origins import Origins
from devicekit.server.run import bind, run
from devicekit.server.run import server as web_server
from devicekit.server.settings import ServerSettings
from tests.server.conftest import Models, Serve, Server

SMALL = {"kv_tokens": 2048}


@pytest.fixture
def pair(serve: Serve) -> Iterator[tuple[Server, Server]]:
    """Two engines, one of which waits for its fleet."""
    with ExitStack() as stack:
        first = stack.enter_context(serve(**SMALL))
        yield first, stack.enter_context(serve(**SMALL, await_fleet=True))


def fleet(file: Path, pair: tuple[Server, Server], *verb: str) -> int:
    return main(["fleet", "--file", str(file), *(f"--engine={one.url}" for one in pair), *verb])


def said(server: Server) -> object:
    return server.generate()["text"]


def test_two_servers_change_their_weights_as_one(
    pair: tuple[Server, Server], models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fleet.json"
    waiting = pair[1].get("/ready")
    assert waiting.status_code == 503
    assert "fleet" in waiting.json()["error"]["message"]
    before = said(pair[0])
    wrong = fleet(file, pair, "update", "--model-path", str(models.root), "--weight-version", "v2")
    assert wrong == 1
    assert "Nothing was changed" in capsys.readouterr().out
    assert said(pair[0]) == before
    update = ("update", "--model-path", str(models.b), "--weight-version", "v2")
    assert fleet(file, pair, *update) == 0, capsys.readouterr().out
    assert said(pair[0]) == said(pair[1]) != before
    assert [one.get("/weight_version").json()["weight_version"] for one in pair] == ["v2", "v2"]
    assert pair[1].get("/ready").status_code == 200
    again = fleet(file, pair, *update)
    assert again == 1
    assert "another name" in capsys.readouterr().out
    assert fleet(file, pair, "status") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["served"]["version"] == "v2"
    assert [one["serving"] for one in document["engines"]] == [True, True]
    back = ("update", "--rolling", "--model-path", str(models.a), "--weight-version", "v3")
    assert fleet(file, pair, *back) == 0
    assert said(pair[0]) == said(pair[1]) == before


def test_the_fleets_own_control_plane_answers_for_all(
    pair: tuple[Server, Server], models: Models, tmp_path: Path
) -> None:
    urls = [one.url for one in pair]
    with open_record(tmp_path / "fleet.json", urls) as record:
        endpoints = [HttpEndpoint(url) for url in urls]

        async def close() -> None:
            for one in endpoints:
                await one.close()

        app = create_fleet_app(Fleet(endpoints, record), api_key="secret", on_close=close)
        with TestClient(app, headers={"Authorization": "Bearer secret"}) as http:
            assert http.get("/ready").status_code == 503
            body = {"model_path": str(models.b), "weight_version": "v2"}
            done = http.post("/update_weights_from_disk", json=body)
            assert done.status_code == 200, done.text
            assert [one["success"] for one in done.json()["engines"]] == [True, True]
            assert http.get("/ready").json() == {"ready": True, "not_ready": []}
            assert http.post("/flush_cache?timeout=5").json()["success"]
            assert http.post("/pause_generation", json={"mode": "in_place"}).json()["success"]
            assert pair[1].get("/ready").status_code == 503
            assert http.post("/continue_generation", json={}).json()["success"]
            metrics = http.get("/metrics").text
            for url in urls:
                assert f'devicekit_fleet_engine_weights{{engine="{url}",weight_version="v2"}} 1.0' in metrics
            assert http.get("/status", headers={"Authorization": "Bearer other"}).status_code == 401
            for wrong in (
                {},
                {"model_path": 3, "weight_version": "v"},
                {**body, "rank": 1},
                {**body, "rolling": 1},
            ):
                assert http.post("/update_weights_from_disk", json=wrong).status_code == 400
            assert http.post("/pause_generation", content="[" * 100_000).status_code == 415


def test_an_engine_that_is_not_there_is_named_and_nothing_is_changed(
    serve: Serve, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(**SMALL) as one:
        members = (one.url, "http://127.0.0.1:9")
        command = ["fleet", "--file", str(tmp_path / "fleet.json"), *(f"--engine={url}" for url in members)]
        assert main([*command, "update", "--model-path", str(models.b), "--weight-version", "v2"]) == 1
        out = capsys.readouterr().out
        assert "FAIL  http://127.0.0.1:9" in out
        assert "Nothing was changed" in out
        assert one.get("/weight_version").json()["weight_version"] != "v2"


def test_engines_that_are_named_no_more_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fleet", "--file", str(tmp_path / "fleet.json")]
    both = ("--engine=http://127.0.0.1:9", "--engine=http://127.0.0.1:7")
    assert main([*command, *both, "status"]) == 0
    assert "note" not in capsys.readouterr().err
    assert main([*command, "--engine=HTTP://127.0.0.1:9/", "status"]) == 0
    assert (
        "no longer of this fleet, which was given other engines: http://127.0.0.1:7."
        in capsys.readouterr().err
    )
    assert main([*command, "status"]) == 0
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://x", "http://", "http://a?b=c", "http://u:p@host"])
def test_what_is_no_url_of_an_engine_is_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fleet", "--file", str(tmp_path / "f.json"), "--engine", url, "status"]) == 1
    assert "no URL of an engine" in capsys.readouterr().err


def test_engines_of_other_keys_or_named_twice_are_no_fleet_and_nothing_is_changed(
    serve: Serve, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(**SMALL, admin_api_key="one") as first, serve(**SMALL, admin_api_key="other") as second:
        pair, file = (first, second), tmp_path / "fleet.json"
        key = ("--admin-api-key", "one")
        update = ("update", "--model-path", str(models.b), "--weight-version", "v2")
        assert fleet(file, pair, *key, *update) == 1
        out = capsys.readouterr().out
        assert "Nothing was changed" in out
        assert f"FAIL  {second.url}  This endpoint needs the admin key" in out
        for one in pair:
            info = one.get("/server_info").json()
            assert (info["prepared_update"], info["steered_by"], info["awaits_fleet"]) == (None, None, False)
        assert fleet(file, (first, first), "status") == 1
        assert "named twice" in capsys.readouterr().err


def test_no_page_steers_a_fleet_and_requests_of_clients_are_told_where_to_go(
    serve: Serve, tmp_path: Path
) -> None:
    with serve(**SMALL) as one, open_record(tmp_path / "fleet.json", [one.url]) as record:
        members = Fleet([HttpEndpoint(one.url)], record)
        own = Origins("127.0.0.1").is_own_host
        for key, status in ((None, 403), ("secret", 200)):
            app = create_fleet_app(members, api_key=key, own_host=own)
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            # A page whose name was made to lead here is of the same origin, and says nothing else of itself.
            with TestClient(app, base_url="http://evil.example:30900") as http:
                assert http.get("/list_workers", headers=headers).status_code == status
            with TestClient(app, base_url="http://localhost:30900") as http:
                assert http.get("/list_workers", headers=headers).status_code == 200
        with TestClient(create_fleet_app(members, on_close=members.close)) as http:
            for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                assert http.post("/pause_generation", headers=headers).status_code == 403
            assert one.get("/ready").status_code == 200
            lost = http.post("/generate", json={"text": "x"})
            assert lost.status_code == 404
            assert "carries no request" in lost.json()["message"]
            assert http.get("/list_workers").json() == {"urls": [one.url]}
            body = {"model_path": "/m", "weight_version": "v2", "at_once": 0}
            assert http.post("/update_weights_from_disk", json=body).status_code == 400


def test_engines_of_a_fleet_that_is_gone_are_freed_by_one_command_once_the_operator_says_so(
    pair: tuple[Server, Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    lease = first.post("/claim_for_fleet", {"fleet": "f", "steered_by": "the fleet that died"}).json()[
        "lease"
    ]
    assert first.post("/hold_for_fleet", {"mode": "retract", "lease": lease}).status_code == 200
    file = tmp_path / "fleet.json"
    assert fleet(file, pair, "adopt") == 1
    assert "the fleet that died" in capsys.readouterr().err
    assert fleet(file, pair, "release-hold") == 1
    shown = capsys.readouterr().out
    assert f"{first.url}  has 'default'; held, and does not generate: the fleet that died" in shown
    assert f"{second.url}  has 'default'; held" in shown
    assert "nothing is compared" in shown
    assert [one.get("/ready").status_code for one in pair] == [503, 503]
    assert fleet(file, pair, "release-hold", "--yes") == 0, capsys.readouterr().out
    assert "serves 'default'" in capsys.readouterr().out
    assert [one.get("/ready").status_code for one in pair] == [200, 200]
    assert all(one.get("/server_info").json()["steered_by"] is None for one in pair)
    late = first.post("/hold_for_fleet", {"mode": "retract", "lease": lease})
    assert late.status_code == 409, "what the dead fleet said, and arrives late"
    assert fleet(file, pair, "release-hold", "--yes") == 0
    assert "not held" in capsys.readouterr().out
    other = tmp_path / "other.json"
    assert main(["fleet", "--file", str(other), "release-hold", "--yes"]) == 1
    assert "--engine URL" in capsys.readouterr().err
    gone = ["fleet", "--file", str(other), "--engine", "http://127.0.0.1:9", "release-hold", "--yes"]
    assert main(gone) == 1
    assert "no answer" in capsys.readouterr().out
    assert not other.exists(), "no fleet's file is needed, or made"


def test_a_client_that_never_comes_to_the_point_is_cut_off_by_the_fleet_as_well(
    shared: Server, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.json"
    command = [sys.executable, "-m", "devicekit", "fleet", "--file", str(file), f"--engine={shared.url}"]
    with subprocess.Popen([*command, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
            assert found is not None
            port = int(found[1])
            patient = httpx.HTTPTransport(retries=8)  # it may not listen yet
            with httpx.Client(transport=patient, timeout=60, trust_env=False) as http:
                assert http.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
            taken = 0
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, suppress(OSError):
                connection.sendall(b"GET /ready HTTP/1.1\r\n")
                for _ in range(1000):  # 40 MB, if nobody objects
                    connection.sendall(b"X: " + b"a" * 40_000 + b"\r\n")
                    taken += 40_000
            assert taken < 32 << 20, "more than the kernel buffers was read before anybody objected"
        finally:
            process.send_signal(signal.SIGINT)


@pytest.fixture
def served(serve: Serve, tmp_path: Path) -> Iterator[tuple[Server, httpx.Client, Fleet]]:
    """An engine, a client of the fleet that steers it, and that fleet. Their key is of any letters."""
    key = "clé €"
    file = tmp_path / "fleet.json"
    with serve(admin_api_key=key) as engine, open_record(file, [engine.url]) as record:
        fleet = Fleet([HttpEndpoint(engine.url, api_key=key)], record)
        web = web_server(create_fleet_app(fleet, api_key=key, on_close=fleet.close))
        listener = bind(ServerSettings(port=0))
        thread = threading.Thread(target=run, args=(web, listener))
        thread.start()
        headers = httpx.Headers({"Authorization": f"Bearer {key}"}, encoding="utf-8")
        engine.http.headers.update(headers)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
                yield engine, http, fleet
        finally:
            web.asked_to_stop = True
            thread.join()


def test_a_verb_ends_with_its_client_and_another_may_come(served: tuple[Server, httpx.Client, Fleet]) -> None:
    engine, http, fleet = served
    for path in ("/flush_cache", "/drain"):
        with engine.running():
            with pytest.raises(httpx.ReadTimeout):
                http.post(path, json={"timeout": 900_000}, timeout=1)
            engine.eventually(lambda: fleet.busy is None)
            assert http.post("/continue_generation", json={}).status_code == 200, path


def test_a_fleet_is_asked_with_its_one_key(served: tuple[Server, httpx.Client, Fleet]) -> None:
    _, http, _ = served
    right = http.headers.raw[-1][1]
    other = {"Authorization": right.replace(b"Bearer", b"bearer ")}
    assert http.post("/fleet/adopt").status_code == 200
    assert http.get("/status", headers=other).status_code == 200  # type: ignore[arg-type]
    del http.headers["Authorization"]
    for wrong in (
        [right, right],
        [right[:-1]],
        [b"Basic" + right[6:]],
        [right + b"a"],
        [b"Bearer"],
        [b""],
        [],
    ):
        headers = [(b"Authorization", one) for one in wrong]
        assert http.get("/status", headers=headers).status_code == 401, wrong


@pytest.mark.parametrize(
    "body", [{"x": "a" * 200_000}, {"timeout": None}, {"x": {"a": [None]}}, {"a\r\nb": "é"}]
)
def test_a_flush_is_sent_on_whatever_is_in_it(
    served: tuple[Server, httpx.Client, Fleet], body: dict[str, object]
) -> None:
    _, http, _ = served
    answer = http.post("/flush_cache", json=body)
    assert (answer.status_code, answer.json()["success"]) == (200, True), answer.text
