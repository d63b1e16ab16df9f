"""A server goes down in good order: nobody is left without an answer, and nothing is printed that nobody wrote."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.server import protocol
from devicekit.server.settings import ServerSettings
from tests.programs import Program
from tests.server.conftest import LONG, Models, Serve
from tools.warm import Warm

STREAM = {"text": "a", "sampling_params": LONG, "stream": True}
SHORT = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}


@contextmanager
def _process(warm: Warm, models: Models, *options: str) -> Iterator[tuple[Program, httpx.Client]]:
    command = [*warm.python, "-m", "devicekit.cli", "serve", "--model", str(models.a), "--device", "cpu"]
    with Program(
        [*command, "--port", "0", "--kv-tokens", "200000", "--log-level", "warning", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        url = process.address()
        try:
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
                yield process, http
        finally:
            process.kill()


def _post(url: str, path: str, document: dict[str, object]) -> httpx.Response:
    """From another thread, and on a connection of its own, which outlives the test's."""
    return httpx.post(f"{url}{path}", json=document, timeout=60, trust_env=False)


def _posted(document: dict[str, object]) -> bytes:
    body = json.dumps(document).encode()
    return b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stream_that_is_cut_says_so_and_nothing_else_is_printed(
    warm: Warm, models: Models, number: signal.Signals
) -> None:
    with _process(warm, models, "--drain-seconds", "0.5") as (process, http):
        with http.stream("POST", "/generate", json=STREAM) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert "stopping" in json.loads(rest[-2].removeprefix("data: "))["error"]["message"]
        assert process.wait(60) in (0, 130, -number)
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_second_signal_ends_it_at_once(warm: Warm, models: Models) -> None:
    with _process(warm, models, "--drain-seconds", "1000") as (process, http):
        with http.stream("POST", "/generate", json=STREAM) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while http.get("/health").status_code == 200:  # until it has begun to stop
                pass
            assert http.get("/health").json()["status"] == "stopping"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_while_it_drains_nothing_new_is_taken_and_what_runs_ends(serve: Serve) -> None:
    with serve(drain_seconds=60) as one:
        one.post("/pause_generation", {"mode": "in_place"})
        one.post("/continue_generation")
        with one.running() as stream:
            one.serving.stopping = "The server is stopping."  # as the signal has it
            for path, document in (
                ("/generate", {"text": "a"}),
                ("/v1/completions", {"prompt": "a"}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ):
                answer = one.post(path, document)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert one.get("/health").json()["status"] == "stopping"
            assert (one.get("/ready").status_code, one.get("/ping").status_code) == (503, 200)
            assert next(stream)["meta_info"]["finish_reason"] is None
            assert one.post("/abort_request", {"abort_all": True}).status_code == 200
            [*_, last] = stream
            assert last["meta_info"]["finish_reason"]["type"] == "abort"


def test_what_ends_in_time_is_answered_whole(serve: Serve) -> None:
    answers: list[httpx.Response] = []
    with serve(drain_seconds=60) as one:
        one.post("/pause_generation", {"mode": "in_place"})

        def ask() -> None:
            answers.append(_post(one.url, "/generate", {"text": "a", "sampling_params": SHORT}))

        thread = threading.Thread(target=ask)
        thread.start()
        one.eventually(lambda: one.load()["num_waiting_reqs"] == 1)
        one.post("/continue_generation")
    thread.join()
    assert [(answer.status_code, len(answer.json()["output_ids"])) for answer in answers] == [(200, 4)]


def test_what_cannot_end_is_told_why(serve: Serve) -> None:
    answers: list[httpx.Response] = []
    with serve(drain_seconds=60) as one:
        one.post("/pause_generation", {"mode": "in_place"})  # nothing ends while paused: it is not waited for

        def ask() -> None:
            answers.append(_post(one.url, "/generate", {"text": "a", "sampling_params": SHORT}))

        thread = threading.Thread(target=ask)
        thread.start()
        one.eventually(lambda: one.load()["num_waiting_reqs"] == 1)
    thread.join()
    assert [answer.status_code for answer in answers] == [503]
    assert "stopping" in answers[0].json()["error"]["message"]


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicekit.server.run._GRACE", 1.2)
    document = {"input_ids": [1], "sampling_params": {**LONG, "n": 4}, "stream": True}
    with serve() as one:
        connection = socket.create_connection(("127.0.0.1", int(one.url.rpartition(":")[2])))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(_posted(document))
        one.eventually(lambda: one.load()["num_running_reqs"] == 4)
    connection.close()  # the server has ended


# -- Slow clients ---------------------------------------------------------------------------------------------


def _connect(url: str, *, small_segments: bool = False) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    if small_segments:  # by large ones the kernel takes megabytes before anybody has to wait
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    return connection


def test_a_client_that_stops_reading_is_let_go_and_its_requests_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_WRITE_SECONDS", 0.3)
    document = {"input_ids": [1], "sampling_params": {**LONG, "n": 8}, "stream": True}
    with serve() as one, _connect(one.url, small_segments=True) as connection:
        connection.sendall(_posted(document))
        one.eventually(lambda: one.load()["num_running_reqs"] == 8)
        one.eventually(lambda: one.load()["num_total_reqs"] == 0)


def test_a_client_that_never_takes_its_answer_is_let_go(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_WRITE_SECONDS", 0.3)
    with serve(keep_alive_seconds=0) as one, _connect(one.url) as connection:
        get = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"

        def ask_for_ever() -> None:
            while True:
                connection.sendall(get * 10)

        with pytest.raises(OSError):  # a reset, or a broken pipe
            ask_for_ever()
        assert one.get("/ping").status_code == 200


def test_a_body_that_trickles_in_is_cut_off_however_many_parts_it_has(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_SECONDS", 0.3)
    with serve() as one, _connect(one.url) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        found = b""
        connection.settimeout(0.05)
        for _ in range(200):
            try:
                connection.sendall(b" ")
                found += connection.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if not found or found.endswith(b"}"):
                break
        else:
            raise AssertionError("it was let go on")


def test_bodies_are_bounded_together_and_short_ones_have_room_of_their_own(serve: Serve) -> None:
    size = 600_000
    with serve(max_body_bytes=1_000_000, max_bodies_bytes=2_000_000) as one:
        head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (size + 1)
        long = {"text": "a" * size, "sampling_params": {"max_new_tokens": 1}}
        held: list[socket.socket] = []

        def no_room() -> bool:
            for connection in select.select(held, [], [], 0)[0]:  # refused: the long one was read before it
                held.remove(connection)
                connection.close()
            while len(held) < 3:
                held.append(_connect(one.url))
                held[-1].sendall(head + b" " * size)
            try:
                return one.post("/generate", long).status_code == 503
            except httpx.TransportError:  # refused, and closed while it was being sent
                return False

        try:
            one.eventually(no_room)
            assert one.generate()["output_ids"]
        finally:
            for connection in held:
                connection.close()
        # There is room again: it is read.
        one.eventually(lambda: one.post("/generate", long).status_code == 400)


def test_operations_that_wait_are_limited_in_number(serve: Serve) -> None:
    with serve(max_pending_operations=2) as one, one.running():
        threads = [
            threading.Thread(target=_post, args=(one.url, "/flush_cache?timeout=60", {})) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        one.eventually(lambda: len(one.get("/status").json()["pending"]) == 2)
        answer = one.post("/flush_cache?timeout=60")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    for thread in threads:
        thread.join()


def test_the_time_to_stop_is_bounded_though_the_engine_is_stuck(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devicekit.server.loop._PATIENCE", 0.2)
    go_on = threading.Event()
    with serve() as one:
        one.serving.loop._looks.append(lambda: go_on.wait(60))
        one.serving.loop._scheduler.wake()
        one.eventually(lambda: not one.serving.loop._looks)
    assert one.serving.loop.alive
    go_on.set()


def test_settings_of_the_end_are_checked() -> None:
    for name in ("drain_seconds", "keep_alive_seconds"):
        for wrong in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ConfigurationError, match=name):
                ServerSettings(**{name: wrong})
