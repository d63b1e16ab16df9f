"""An engine reads the weights of another over real sockets, and writes none that are not the ones expected."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load, save

from devicekit.cli import main
from tests.server.conftest import Models, Serve, Server

SMALL = {"kv_tokens": 2048}
Mangle = Callable[[bytes], "bytes | None"]


@pytest.fixture(scope="module")
def giver(serve: Serve, models: Models) -> Iterator[Server]:
    with serve(**SMALL) as one:
        done = one.post("/update_weights_from_disk", {"model_path": str(models.b), "weight_version": "v2"})
        assert done.status_code == 200
        yield one


@pytest.fixture(scope="module")
def taker(serve: Serve) -> Iterator[Server]:
    with serve(**SMALL) as one:
        yield one


def checksum(server: Server) -> str:
    return str(server.post("/weights_checker", {"action": "checksum"}).json()["per_engine_checksum"])


def asking(url: str, wanted: str, **more: object) -> dict[str, object]:
    return {"update_id": "u", "peer": url, "weight_version": "v2", "checksum": wanted, **more}


def commit(server: Server) -> httpx.Response:
    return server.post("/commit_weight_update", {"update_id": "u", "weight_version": "v2"})


def test_weights_of_a_peer_are_read_first_and_written_when_they_are_to_be(
    giver: Server, serve: Serve, models: Models
) -> None:
    with serve(**SMALL, refuse_nonfinite_weights=True) as taker:
        before = checksum(taker)
        prepared = taker.post("/prepare_weight_update", asking(giver.url, checksum(giver)))
        assert prepared.status_code == 200, prepared.text
        assert prepared.json()["tensors"] > 10
        assert checksum(taker) == before
        assert taker.get("/server_info").json()["prepared_update"] == "u"
        assert taker.post("/prepare_weight_update", asking(giver.url, checksum(giver))).status_code == 200
        assert commit(taker).status_code == 200
        assert checksum(taker) == checksum(giver)
        assert taker.generate()["text"] == giver.generate()["text"]


def test_an_engine_gives_its_weights_whole_as_safetensors_and_only_of_the_version_asked_for(
    giver: Server, models: Models
) -> None:
    stored = load((models.b / "model.safetensors").read_bytes())
    names = list(stored)[:3]
    given = load(giver.post("/read_weights", {"names": [*names, names[0]]}).content)
    assert given.keys() == set(names)
    assert all(given[name].equal(stored[name]) for name in names)
    other = giver.post("/read_weights", {"names": names, "weight_version": "v3"})
    assert other.status_code == 409
    assert "'v2', not 'v3'" in other.json()["message"]
    unknown = giver.post("/read_weights", {"names": ["nobody"]})
    assert unknown.status_code == 400
    assert "nobody" in unknown.json()["message"]
    for wrong in ([], ["x"] * 2000, None):
        assert giver.post("/read_weights", {"names": wrong}).status_code == 400


@contextmanager
def between(
    giver: Server, mangle: Mangle, *, announce: int = 0, status: int = 200, drips: bool = False
) -> Iterator[str]:
    """A peer that hands on what the giver says, mangled; where that is nothing more, it stays silent."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {"Content-Type": "application/json"}
            answer = giver.http.post(self.path, content=asked, headers=headers)
            content = answer.content
            said = mangle(content)
            self.send_response(status if answer.status_code == 200 else answer.status_code)
            self.send_header("Content-Length", str(announce + (len(content) if said is None else len(said))))
            self.end_headers()
            for byte in said if drips and said is not None else b"":
                if ended.wait(0.02):
                    return
                self.wfile.write(bytes([byte]))
            self.wfile.write(content[: len(content) // 2] if said is None else said)
            self.wfile.flush()
            if said is None:
                ended.wait(30)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            ended.set()
            listening.shutdown()
            thread.join()


def _other_value(content: bytes) -> bytes:
    tensors = load(content)
    next(iter(tensors.values())).view(-1)[0] += 1
    return save(tensors)


def _another_type(content: bytes) -> bytes:
    return save({name: one.double() for name, one in load(content).items()})


def _half_the_type(content: bytes) -> bytes:
    return save({name: one.half() for name, one in load(content).items()})


def _another_shape(content: bytes) -> bytes:
    return save({name: one[None] for name, one in load(content).items()})


def _too_few(content: bytes) -> bytes:
    return save(dict(list(load(content).items())[1:]))


def _no_numbers(content: bytes) -> bytes:
    tensors = load(content)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    return save(tensors)


@pytest.mark.parametrize(
    ("mangle", "announce", "status", "why"),
    [
        (_other_value, 0, 200, "gave other weights under the name 'v2': their checksum is"),
        (_no_numbers, 0, 200, "gave other weights under the name 'v2'"),
        (_another_type, 0, 200, "are the most"),
        (_half_the_type, 0, 200, "has another model"),
        (_another_shape, 0, 200, "has another model"),
        (_too_few, 0, 200, "that are not the"),
        (lambda content: content[:200], 0, 200, "no safetensors"),
        (lambda content: content[:-1000], 1000, 200, "ended midway"),
        (lambda content: content, 1 << 40, 200, "are the most"),
        (lambda content: None, 0, 200, "has said nothing for 0.3 s"),
        (lambda content: b"<html>", 0, 404, r"has no /read_weights \(404\)"),
        (lambda content: b"[" * 100_000, 0, 500, "gives no weights: status 500"),
        (lambda content: b"", 0, 302, "gives no weights: status 302"),
    ],
)
def test_a_peer_that_lies_stalls_or_ends_changes_nothing_and_is_named(
    giver: Server, taker: Server, mangle: Mangle, announce: int, status: int, why: str
) -> None:
    before = checksum(taker)
    with between(giver, mangle, announce=announce, status=status) as url:
        patience = 0.3 if "has said nothing" in why else 60
        asked = asking(url, checksum(giver), patience=patience)
        said = taker.post("/prepare_weight_update", asked)
    assert said.status_code == 400, said.text
    message = said.json()["message"]
    assert url in message
    assert re.search(why, message), message
    assert taker.get("/server_info").json()["prepared_update"] is None
    assert checksum(taker) == before
    assert commit(taker).status_code == 409


def test_a_peer_that_drips_is_given_up(giver: Server, taker: Server) -> None:
    with between(giver, lambda content: content, drips=True) as url:
        said = taker.post("/prepare_weight_update", asking(url, checksum(giver), patience=0.3))
    assert said.status_code == 400
    assert f"{url} is too slow" in said.json()["message"]


def test_an_engine_gives_to_few_at_a_time_and_little_at_once(
    giver: Server, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(load((models.b / "model.safetensors").read_bytes()))
    monkeypatch.setattr("devicekit.server.weight_reading._MOST_BYTES", 1000)
    assert giver.post("/read_weights", {"names": names[:1]}).status_code == 200
    many = giver.post("/read_weights", {"names": names})
    assert many.status_code == 400
    assert "Ask for fewer" in many.json()["error"]["message"]
    monkeypatch.setattr("devicekit.server.weight_reading._AT_ONCE", 0)
    assert giver.post("/read_weights", {"names": names[:1]}).status_code == 429
    assert giver.serving.lent == 0


@pytest.mark.parametrize(
    ("version", "why"), [("v3", "are 'v3', not 'v2'"), ("v2", "gave other weights under the name 'v2'")]
)
def test_a_peer_whose_weights_change_midway_is_found_out(
    giver: Server, taker: Server, models: Models, monkeypatch: pytest.MonkeyPatch, version: str, why: str
) -> None:
    monkeypatch.setattr("devicekit.weights.peer._TOGETHER", 1)  # one weight in each answer
    before, wanted, asked = checksum(taker), checksum(giver), 0

    def update(path: Path, version: str) -> None:
        body = {"model_path": str(path), "weight_version": version}
        assert giver.post("/update_weights_from_disk", body).status_code == 200

    def update_after_three(content: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 3:
            update(models.a, version)
        return content

    with between(giver, update_after_three) as url:
        said = taker.post("/prepare_weight_update", asking(url, wanted))
    update(models.b, "v2")
    assert said.status_code == 400
    assert why in said.json()["message"]
    assert asked == 4 if version == "v3" else asked > 10
    assert taker.get("/server_info").json()["prepared_update"] is None
    assert checksum(taker) == before


def test_what_is_on_its_way_can_be_given_up_and_requests_and_updates_go_on_meanwhile(
    giver: Server, taker: Server, models: Models
) -> None:
    wanted, reached = checksum(giver), threading.Event()

    def stall(content: bytes) -> None:
        reached.set()

    with between(giver, stall) as url, ThreadPoolExecutor() as threads:
        waiting = threads.submit(taker.post, "/prepare_weight_update", asking(url, wanted))
        assert reached.wait(30)
        assert taker.generate()["text"]
        assert taker.get("/ready").status_code == 200
        body = {"model_path": str(models.b), "weight_version": "v3"}
        updated = taker.post("/update_weights_from_disk", body)
        assert (updated.status_code, updated.json()["weight_version"]) == (200, "v3"), (
            "it waited for the peer"
        )
        other = taker.post("/prepare_weight_update", asking("http://127.0.0.1:9", wanted))
        assert other.status_code == 409, "another peer under the same name"
        assert taker.post("/discard_weight_update", {"update_id": "u"}).status_code == 200
        given_up = waiting.result(30)
    assert given_up.status_code == 409
    assert "given up" in given_up.json()["message"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"peer": "ftp://10.0.0.1"}, "no URL"),
        ({"peer": "http://key@10.0.0.1"}, "no URL"),
        ({"peer": "http://[::1"}, "no URL"),
        ({"checksum": ""}, "checksum"),
        ({"weight_version": ""}, "weight_version"),
        ({"model_path": "/m"}, "one of the two"),
        ({"peer": None}, "nothing without peer"),
        ({"selector": "draft"}, "draft|target"),
        ({"patience": 0}, "patience"),
    ],
)
def test_what_cannot_be_asked_of_a_peer_is_refused(taker: Server, wrong: dict[str, object], why: str) -> None:
    said = taker.post("/prepare_weight_update", {**asking("http://127.0.0.1:9", "x"), **wrong})
    assert said.status_code == 400
    assert re.search(why, said.json()["error"]["message"]), said.text


def test_nobody_is_there(taker: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        said = taker.post("/prepare_weight_update", asking(url, "x"))
    assert said.status_code == 400
    assert f"{url} did not give its weights: ConnectionRefusedError" in said.json()["message"]


def test_a_fleet_brings_weights_whose_files_are_gone_from_a_peer_with_the_same_key(
    serve: Serve, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = shutil.copytree(models.b, tmp_path / "new")
    keys = {"api_key": "user", "admin_api_key": "secret"}
    roots = {"allowed_weights_roots": (models.root, tmp_path)}
    with serve(**SMALL, **keys, **roots) as one, serve(**SMALL, **keys, **roots, await_fleet=True) as two:
        for server in (one, two):
            server.http.headers["Authorization"] = "Bearer secret"
        members = (f"--engine={one.url}", f"--engine={two.url}")
        command = ["fleet", "--file", str(tmp_path / "fleet.json"), "--admin-api-key", "secret", *members]
        assert main([*command, "update", "--model-path", str(new), "--weight-version", "v2"]) == 0
        wanted = checksum(one)
        assert two.post("/update_weights_from_disk", {"model_path": str(models.a)}).status_code == 200
        shutil.rmtree(new)
        assert main([*command, "tend"]) == 0, capsys.readouterr().out
        assert f"took the weights of {one.url}" in capsys.readouterr().out
        assert checksum(two) == wanted
        assert two.get("/ready").status_code == 200
        assert two.get("/weight_version").json()["weight_version"] == "v2"
