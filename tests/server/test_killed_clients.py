"""Clients that are killed without a goodbye: what they were told holds, and nothing of theirs stays behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.programs import Program
from tests.server.conftest import LONG, Models, Serve, Server

# Sends requests one after the other over one connection, and prints what each was answered; the last is streamed.
CLIENT = """
import json, sys, http.client
connection = http.client.HTTPConnection(*sys.argv[1].rsplit(":", 1), timeout=60)
for line in sys.stdin:
    path, document = json.loads(line)
    connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if document.get("stream"):
        while True:
            print(answer.readline().decode().strip(), flush=True)
    print(answer.status, answer.read().decode(), flush=True)
"""


class Client:
    """A client in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def send(self, path: str, document: dict[str, object]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([path, document]) + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def post(self, path: str, document: dict[str, object]) -> dict[str, object]:
        self.send(path, document)
        status, _, body = self.line().partition(" ")
        assert status == "200", body
        return json.loads(body)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


@contextmanager
def client(server: Server) -> Iterator[Client]:
    command = [sys.executable, "-c", CLIENT, server.url.removeprefix("http://")]
    with Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Client(process)
        process.kill()


@pytest.fixture(scope="module")
def killed(serve: Serve) -> Iterator[Server]:
    with serve(checked=True) as running:  # every page, row and slot is accounted for after every step
        yield running


@pytest.fixture
def server(killed: Server, models: Models) -> Iterator[Server]:
    yield killed
    killed.restore(models)
    killed.eventually(lambda: killed.load()["num_total_reqs"] == 0)
    killed.eventually(lambda: not killed.get("/status").json()["pending"])
    assert killed.get("/flush_cache", timeout=10).status_code == 200
    engine = killed.get("/status").json()["engine"]
    assert (engine["pages_free"], engine["unbalanced"]) == (engine["pages_total"], "")
    assert killed.generate()["output_ids"]


def test_a_client_killed_in_mid_stream_ends_its_request_and_gives_everything_back(server: Server) -> None:
    with client(server) as one:
        one.send("/generate", {"text": ["a", "b"], "sampling_params": LONG, "stream": True})
        assert one.line().startswith("data: ")
        assert server.load()["num_running_reqs"] == 2
        one.kill()
    server.eventually(lambda: server.load()["num_total_reqs"] == 0)


def test_a_client_killed_while_it_waits_ends_its_requests(server: Server) -> None:
    with client(server) as one:
        one.send("/generate", {"text": ["a", "b"], "sampling_params": LONG})
        server.eventually(lambda: server.load()["num_running_reqs"] == 2)
        one.kill()
    server.eventually(lambda: server.load()["num_total_reqs"] == 0)


def test_what_a_killed_client_was_acknowledged_holds(server: Server, models: Models) -> None:
    """Pause, version and weights stay as they were answered; nobody undoes them, and nobody does them again."""
    with client(server) as one:
        paused = one.post("/pause_generation", {"mode": "retract"})
        document = {"model_path": str(models.b), "weight_version": "7"}
        assert one.post("/update_weights_from_disk", document)["outcome"] == "updated"
        one.kill()
    assert server.get("/health").json()["status"] == "paused"
    assert server.get("/status").json()["engine"]["epoch"] == paused["epoch"]
    server.post("/continue_generation")
    assert server.generate()["meta_info"]["weight_version"] == "7"


WAITING = {
    "/flush_cache?timeout=600": ("Flush", {}),
    "/drain": ("Drain", {}),
    "/update_weights_from_disk": ("UpdateWeightsFromDisk", {"weight_version": "8"}),
    "/begin_weight_update": ("BeginWeightUpdate", {}),
    "/transaction": ("Transaction", {"weight_version": "9", "settle": "drain", "timeout": 600}),
}


@pytest.mark.parametrize("path", WAITING)
def test_a_verb_that_waits_does_so_no_longer_than_its_client(
    server: Server, models: Models, path: str
) -> None:
    name, document = WAITING[path]
    if "weight_version" in document:
        document = {"model_path": str(models.b), **document}
    before = server.get("/get_weight_version").json()
    with server.running(rid="in the way"), client(server) as one:
        one.send(path, document)
        server.eventually(lambda: len(server.get("/status").json()["pending"]) == 1)
        one.kill()
        server.eventually(lambda: not server.get("/status").json()["pending"])
        assert server.load()["num_running_reqs"] == 1
        assert server.generate()["output_ids"]  # admission is open, and nothing is held
    [operation, *_] = [one for one in server.get("/status").json()["operations"] if one["operation"] == name]
    assert not operation["success"]
    assert server.get("/get_weight_version").json() == before
    assert server.get("/health").json()["status"] == "ok"


def test_a_group_is_waited_for_no_longer_than_its_client_and_may_be_joined_again(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = {"master_address": "127.0.0.1", "master_port": silent.getsockname()[1], "timeout": 15}
        for _ in range(2):
            with client(server) as one:
                one.send("/init_weights_update_group", {**place, "rank_offset": 1, "world_size": 2})
                server.eventually(lambda: len(server.get("/status").json()["pending"]) == 1)
                one.kill()
            server.eventually(lambda: not server.get("/status").json()["pending"])


def test_very_many_clients_that_hang_up_leave_no_operation_behind(server: Server) -> None:
    """Each has its turn: the limit is of those that somebody waits for."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    headers = f"Host: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: 2"
    request = f"POST /flush_cache?timeout=600 HTTP/1.1\r\n{headers}\r\n\r\n{{}}".encode()
    with server.running(rid="in the way"):
        for _ in range(20):
            with socket.create_connection((host, int(port))) as one:
                one.sendall(request)
                server.eventually(lambda: len(server.get("/status").json()["pending"]) == 1)
            server.eventually(lambda: not server.get("/status").json()["pending"])


def test_a_waiting_verb_of_a_client_that_stays_outlives_that_of_one_that_goes(server: Server) -> None:
    with client(server) as stays, client(server) as goes:
        with server.running(rid="in the way"):
            for one in (stays, goes):
                one.send("/flush_cache?timeout=600", {})
            server.eventually(lambda: len(server.get("/status").json()["pending"]) == 2)
            goes.kill()
            server.eventually(lambda: len(server.get("/status").json()["pending"]) == 1)
            server.post("/abort_request", {"rid": "in the way"})
        status, _, body = stays.line().partition(" ")
        assert (status, json.loads(body)["success"]) == ("200", True)


def test_the_answer_to_a_killed_client_does_not_reach_the_next(server: Server) -> None:
    with server.running(rid="in the way"), client(server) as one:
        one.send("/drain", {"timeout": 60})
        server.eventually(lambda: len(server.get("/status").json()["pending"]) == 1)
        one.kill()
        with client(server) as two:
            two.send("/drain", {"timeout": 0.05})
            status, _, body = two.line().partition(" ")
            assert (status, json.loads(body)["remaining_requests"]) == ("409", 1)


def test_a_client_killed_within_a_session_leaves_it_to_another_to_end(server: Server) -> None:
    with client(server) as one:
        one.post("/begin_weight_update", {})
        one.kill()
    assert server.get("/health").json()["message"] == "a weight update is in progress"
    assert server.post("/end_weight_update").json()["outcome"] == "unchanged"
