"""Engines, gateways, files and clients that mean no good to a fleet that is served."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest
from starlette.testclient import TestClient

from devicekit.cli import main
from devicekit.contract.errors import ConfigurationError
from devicekit.fleet import Fleet, FleetBusy, MemberSource, open_record
from devicekit.fleet.app import create_fleet_app
from devicekit.fleet.exchange import peer_url
from devicekit.fleet.gateway import GatewayMembers
from devicekit.fleet.http import HttpEndpoint

KEY = "the-key-of-the-engines"
_PATIENCE = 60.0  # seconds, on a busy machine
_INFO = {"instance": "i", "weight_version": "v", "status": "ok", "awaits_fleet": False, "model_path": "/m"}

Said = tuple[int, Mapping[str, str], bytes]


@dataclass
class Engine:
    """A server that answers as it is told to, and soundly otherwise."""

    answers: dict[str, Said] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, key
    silent: str = ""  # a path that is answered once `heard` is set
    heard: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, path: str) -> Said:
        path = path.partition("?")[0]
        if path == self.silent:
            self.heard.wait(_PATIENCE)
        document: dict[str, object] = {"success": True, "lease": "l", "instance": "i"}
        return self.answers.get(path, said(_INFO if path == "/server_info" else document))


def said(document: object, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> Said:
    """An answer: a document, or bytes as they are."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return status, {"Content-Type": "application/json", **headers}, content


@contextmanager
def engine(**answers: Said) -> Iterator[Engine]:
    made = Engine({f"/{name}": one for name, one in answers.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made.asked.append((self.path, self.headers.get("Authorization")))
            status, headers, content = made.answer(self.path)
            with suppress(ConnectionError):
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

    with Listening(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield made
        finally:
            made.heard.set()
            server.shutdown()


@contextmanager
def served(tmp_path: Path, *urls: str, source: MemberSource | None = None) -> Iterator[TestClient]:
    """The application of a fleet over these engines, or over those that a source names."""

    def connect(url: str) -> HttpEndpoint:
        return HttpEndpoint(url, api_key=KEY)

    with open_record(tmp_path / "fleet.json", urls, sourced=source is not None) as record:
        fleet = Fleet([connect(one) for one in record.record.members], record, source=source, connect=connect)
        with TestClient(create_fleet_app(fleet, on_close=fleet.close)) as http:
            yield http


# -- Engines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_who_sends_a_verb_elsewhere_has_not_done_it_and_is_not_followed(tmp_path: Path, status: int) -> None:
    with engine() as elsewhere, engine(pause_generation=said({}, status, {"Location": elsewhere.url})) as one:
        with served(tmp_path, one.url) as http:
            answer = http.post("/pause_generation")
        assert answer.status_code == 400
        assert f"status {status}" in answer.json()["message"]
        assert not elsewhere.asked, "and the key with it"


_UNREADABLE = {
    "half a character": b'{"weight_version": "\\ud800", "status": "ok"}',
    "in another field": b'{"weight_version": "v", "status": "ok", "instance": "\\udc00"}',
    "no number": b'{"weight_version": "v", "status": "ok", "x": NaN}',
    "a name twice": b'{"weight_version": "v", "weight_version": "w", "status": "ok"}',
    "too deep": b"[" * 100_000,
    "100 MB": b" " * 100_000_000,
}


@pytest.mark.parametrize("content", _UNREADABLE.values(), ids=_UNREADABLE)
def test_what_cannot_be_read_in_one_way_is_no_answer(tmp_path: Path, content: bytes) -> None:
    with engine(server_info=said(content), drain=said(content)) as one, served(tmp_path, one.url) as http:
        [shown] = http.get("/status").json()["engines"]
        assert (shown["reachable"], shown["serving"]) == (False, False)
        assert http.get("/ready").status_code == 503
        assert f'engine_up{{engine="{one.url}"}} 0.0' in http.get("/metrics").text
        refused = http.post("/drain")
        assert (refused.status_code, "no answer" in refused.json()["message"]) == (400, True)
        assert len(refused.content) < 2000


def test_what_is_packed_is_not_unpacked(tmp_path: Path) -> None:
    packed = said(gzip.compress(json.dumps(_INFO).encode()), headers={"Content-Encoding": "gzip"})
    with engine(server_info=packed) as one, served(tmp_path, one.url) as http:
        [shown] = http.get("/status").json()["engines"]
        assert "packed" in shown["message"]


def test_what_an_engine_says_is_shown_short_in_one_line_and_without_codes_for_a_terminal(
    tmp_path: Path,
) -> None:
    long = {"success": False, "message": "\x1b[31mno\nok    forged\r\u202e" + "x" * 1_000_000}
    with engine(drain=said(long, 400)) as one, served(tmp_path, one.url) as http:
        [shown] = http.post("/drain").json()["engines"]
        assert shown["message"].startswith("\\x1b[31mno\\nok    forged\\r\\u202exxx")
        assert len(shown["message"]) < 3000
    info = {**_INFO, "weight_version": "v" * 1_000_000, "steered_by": ["x"], "status": "ok" * 10_000}
    (tmp_path / "other").mkdir()
    with engine(server_info=said(info)) as one, served(tmp_path / "other", one.url) as http:
        [shown] = http.get("/status").json()["engines"]
        assert [shown[name] for name in ("weight_version", "steered_by", "status")] == [None] * 3
        assert len(http.get("/metrics").content) < 2000


@pytest.mark.parametrize("lease", [None, 7, "", ["l"], "l" * 1001])
def test_a_claim_without_a_lease_is_none(tmp_path: Path, lease: object) -> None:
    with engine(claim_for_fleet=said({"lease": lease, "instance": "i"})) as one:
        with served(tmp_path, one.url) as http:
            assert http.post("/fleet/adopt").status_code == 400
        assert all(path != "/end_fleet_claim" for path, _ in one.asked)


def test_engines_that_are_silent_hold_up_no_verb_however_many_probe(tmp_path: Path) -> None:
    with engine() as one, served(tmp_path, one.url) as http, ThreadPoolExecutor(40) as pool:
        one.silent = "/server_info"
        probes = [pool.submit(http.get, "/ready") for _ in range(40)]
        while not one.asked:
            time.sleep(0.01)
        assert http.post("/pause_generation").status_code == 200
        one.heard.set()
        assert {probe.result(_PATIENCE).status_code for probe in probes} == {503}
        looks = [path for path, _ in one.asked if path == "/server_info"]
        assert len(looks) < 10, "each probe asks every engine"


def test_a_look_begins_after_it_was_asked_for(tmp_path: Path) -> None:
    with engine() as one, served(tmp_path, one.url) as http, ThreadPoolExecutor(2) as pool:
        one.silent = "/server_info"
        early = pool.submit(http.get, "/status")
        while not one.asked:
            time.sleep(0.01)
        late = pool.submit(http.get, "/status")
        one.answers["/server_info"] = said({**_INFO, "weight_version": "new"})
        one.heard.set()
        assert early.result(_PATIENCE).status_code == 200
        assert late.result(_PATIENCE).json()["engines"][0]["weight_version"] == "new"


# -- Who belongs to it ----------------------------------------------------------------------------------------

_NO_URLS: tuple[str, ...] = (
    "",
    "ftp://x",
    "http://",
    "http://u:secret@h:1",
    "http://h:0",
    "http://h:99999",
    "http://h:-1",
)
_NO_URLS += (
    "http://h:" + "1" * 500,
    "http://h:1#f",
    "http://h:1/?q=1",
    "http://h:1/?",
    "http://h:1?",
    "http://h:1/#",
    "http://a\0b",
    "http://[::1",
    "http://a b",
)
_NO_URLS += ("x" * 5000, "http://" + "x" * 5000, "http://h\u202e:1", "http://h:1\n")


_SPELLINGS = {
    "http://h": ("http://h/", "HTTP://H", "http://h:80", "Http://h:080/", "http://h//", "http://h/a/.."),
    "https://h": ("https://h:443", "HTTPS://H:443/"),
    "http://h:8080": ("http://h:08080", "HTTP://H:8080/"),
    "http://[::1]:5": ("http://[0:0::1]:5", "HTTP://[0:0:0:0:0:0:0:1]:05/"),
    "http://[fe80::a]:5/x": ("http://[FE80::A]:5/x/", "http://[fe80:0::000a]:5/x"),
    "http://h:443/a/b": ("http://h:443/a/./b/", "http://H:443/a/c/../b"),
}


@pytest.mark.parametrize("url", _SPELLINGS)
def test_all_spellings_of_a_url_are_one_engine(url: str) -> None:
    for spelling in (url, *_SPELLINGS[url]):
        assert peer_url(spelling, "an engine") == url
        assert HttpEndpoint(spelling).name == url


@pytest.mark.parametrize("url", _NO_URLS, ids=lambda one: ascii(one[:20]))
def test_a_gateway_that_lists_what_is_no_url_is_named_and_nothing_is_asked(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="no URL of an engine"):
        HttpEndpoint(url)
    with (
        engine() as good,
        engine(workers=said({}, 404), list_workers=said({"urls": [good.url, url]})) as gateway,
    ):
        with served(tmp_path, source=GatewayMembers(gateway.url)) as http:
            for answer in (
                http.get("/ready"),
                http.get("/status"),
                http.post("/drain"),
                http.get("/list_workers"),
            ):
                assert answer.status_code == 503
                assert "gateway" in answer.json()["message"]
                assert "secret" not in answer.text
            assert http.get("/metrics").status_code == 200
        assert not good.asked


def test_an_engine_under_two_spellings_is_one(tmp_path: Path) -> None:
    with engine() as one:
        port = one.url.rpartition(":")[2]
        spelt = [f"HTTP://127.0.0.1:{port}", f"{one.url}/", f"http://127.0.0.1:0{port}"]
        listed = said({"workers": [{"url": url} for url in spelt]})
        with engine(workers=listed) as gateway, served(tmp_path, source=GatewayMembers(gateway.url)) as http:
            assert http.get("/list_workers").json() == {"urls": [one.url]}


def test_a_list_longer_than_any_fleet_is_refused_and_a_long_one_costs_little(tmp_path: Path) -> None:
    def listed(count: int) -> Said:
        return said({"urls": [f"http://10.0.{at >> 8}.{at & 255}:1" for at in range(count)]})

    with (
        engine(workers=listed(1000)) as gateway,
        served(tmp_path, source=GatewayMembers(gateway.url)) as http,
    ):
        began = time.process_time()
        assert len(http.get("/list_workers").json()["urls"]) == 1000
        assert time.process_time() - began < 4
        gateway.answers["/workers"] = gateway.answers["/list_workers"] = listed(10_001)
        refused = http.get("/list_workers")
        assert (refused.status_code, "10001 engines" in refused.json()["message"]) == (503, True)


def test_a_password_in_a_url_is_not_repeated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option in ("--engine", "--gateway"):
        line = ["fleet", "--file", str(tmp_path / "f"), option, "http://user:secret@127.0.0.1:9", "status"]
        assert main(line) == 1
        err = capsys.readouterr().err
        assert "no URL of" in err
        assert "secret" not in err
    assert peer_url("HTTP://ENGINE.example:30000/", "an engine") == "http://engine.example:30000"


# -- Its file -------------------------------------------------------------------------------------------------


def test_a_file_under_two_names_is_one_and_a_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "fleet.json", tmp_path / "link.json"
    real.parent.mkdir()
    link.symlink_to(real)
    with open_record(link, ["http://one"]) as file:
        with pytest.raises(FleetBusy), open_record(real):
            pass
        file.save(held=("http://one",))
    assert link.is_symlink()
    with open_record(real) as file:
        assert file.record.held == ("http://one",)


@pytest.mark.parametrize("kind", ["pipe", "link", "file"])
def test_nothing_in_the_way_of_a_new_file_is_waited_for_or_written_to(tmp_path: Path, kind: str) -> None:
    beside, other = tmp_path / ".fleet.json.new", tmp_path / "other"
    other.write_text("mine")
    {
        "pipe": lambda: os.mkfifo(beside),
        "link": lambda: beside.symlink_to(other),
        "file": lambda: beside.write_text("cut short"),
    }[kind]()
    with open_record(tmp_path / "fleet.json", ["http://one"]):
        pass
    assert other.read_text() == "mine"
    with open_record(tmp_path / "fleet.json") as file:
        assert file.record.members == ("http://one",)


@pytest.mark.parametrize("kind", ["pipe", "directory", "no text", "another version", "cut short", "loop"])
def test_a_file_that_is_none_is_told_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fleet.json"
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "no text": lambda: path.write_bytes(b"\xff\xfe\x00"),
        "another version": lambda: path.write_text('{"members": {"http://one": 1}, "format": 9}'),
        "cut short": lambda: path.write_text('{"members": ["http://o'),
        "loop": lambda: path.symlink_to(path),
    }
    make[kind]()
    before = path.lstat()
    with pytest.raises(ConfigurationError, match=r"fleet\.json"), open_record(path, ["http://one"]):
        pass
    assert (path.lstat().st_ino, path.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# -- Its process ----------------------------------------------------------------------------------------------


@contextmanager
def process(tmp_path: Path, url: str, *more: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    line = [
        sys.executable,
        "-m",
        "devicekit",
        "fleet",
        "--file",
        str(tmp_path / "fleet.json"),
        f"--engine={url}",
    ]
    environment = {**os.environ, "DEVICEKIT_ADMIN_API_KEY": KEY}
    with ExitStack() as stack:
        one = stack.enter_context(
            subprocess.Popen(
                [*line, "serve", "--port", "0", "--tend-every", "0", *more],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        stack.callback(one.kill)
        assert one.stdout is not None
        found = re.search(r"http://127.0.0.1:\d+", one.stdout.readline())
        assert found is not None
        transport = httpx.HTTPTransport(retries=8)  # it may not listen yet
        headers = {"Authorization": f"Bearer {KEY}"}
        yield (
            one,
            stack.enter_context(
                httpx.Client(base_url=found[0], transport=transport, headers=headers, timeout=_PATIENCE)
            ),
        )


def test_a_fleet_that_is_told_to_stop_ends_although_an_engine_is_silent(tmp_path: Path) -> None:
    with engine() as one, process(tmp_path, one.url) as (fleet, http), ThreadPoolExecutor(1) as pool:
        one.silent = "/drain"
        asking = pool.submit(http.post, "/drain", json={"timeout": 3000})
        while not any(path == "/drain" for path, _ in one.asked):
            time.sleep(0.01)
        fleet.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            fleet.wait(1)  # the verb may end by itself
        fleet.send_signal(signal.SIGTERM)
        assert fleet.wait(_PATIENCE) == 128 + signal.SIGTERM
        assert isinstance(asking.exception(_PATIENCE), httpx.TransportError)
        assert fleet.stderr is not None
        assert KEY not in fleet.stderr.read()


@pytest.mark.thorough
def test_a_fleet_that_is_told_once_ends_soon_as_well_and_lets_others_steer(tmp_path: Path) -> None:
    with engine() as one, process(tmp_path, one.url) as (fleet, http), ThreadPoolExecutor(1) as pool:
        one.silent = "/drain"
        pool.submit(http.post, "/drain", json={"timeout": 3000})
        while not any(path == "/drain" for path, _ in one.asked):
            time.sleep(0.01)
        fleet.send_signal(signal.SIGTERM)
        fleet.wait(_PATIENCE)
        assert one.asked[-1][0] == "/end_fleet_claim"


def test_a_client_that_goes_in_the_middle_of_its_body_leaves_no_trace(tmp_path: Path) -> None:
    with engine() as one, process(tmp_path, one.url) as (fleet, http):
        address = (http.base_url.host, http.base_url.port or 0)
        head = (
            f"POST /drain HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n"
        )
        for _ in range(3):
            with socket.create_connection(address, timeout=_PATIENCE) as connection:
                connection.sendall(head.encode() + b'{"a":')
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(100) == b""
        assert http.get("/health").status_code == 200
        assert http.post("/pause_generation").status_code == 200
        assert all(path != "/drain" for path, _ in one.asked)
        fleet.send_signal(signal.SIGTERM)
        fleet.wait(_PATIENCE)
        assert fleet.stderr is not None
        assert fleet.stderr.read() == ""


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e7", "soon"])
def test_what_is_no_time_is_no_option(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["serve", "--tend-every", seconds], ["flush", "--timeout", seconds]):
        with pytest.raises(SystemExit):
            main(["fleet", "--engine", "http://127.0.0.1:9", *line])
        assert "seconds from 0 to a million" in capsys.readouterr().err
