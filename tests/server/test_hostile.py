"""Clients that mean no good, or know no better: each is told so, and nobody else notices."""

from __future__ import annotations

import json
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest

from devicekit.server import protocol
from devicekit.text import Grammar, GrammarMatcher
from tests.server.conftest import Models, Serve, Server

_BODY = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 3, "temperature": 0}}).encode()
POST = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
JSON = {"Content-Type": "application/json"}
PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    assert shared.get("/health_generate").json() == {"status": "ok"}
    assert shared.load()["num_total_reqs"] == 0


def _connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30)


def _exchange(server: Server, content: bytes) -> bytes:
    """What comes back on a connection that is closed for writing after this."""
    with _connect(server) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


# -- On the wire ----------------------------------------------------------------------------------------------


def test_requests_sent_in_one_go_are_answered_in_order(server: Server) -> None:
    expected = server.generate("a", max_new_tokens=3)["output_ids"]
    with _connect(server) as connection:
        connection.sendall(PING + POST + PING + POST)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 4 or not found.endswith(b"}"):
            found += connection.recv(65536)
    answers = [json.loads(one.partition(b"\r\n\r\n")[2]) for one in found.split(b"HTTP/1.1 200 OK")[1:]]
    assert [one.get("status") for one in answers] == ["ok", None, "ok", None]
    assert [one["output_ids"] for one in answers[1::2]] == [expected, expected]


@pytest.mark.parametrize("coding", ["gzip", "identity, br", "x" * 999])
def test_a_body_that_says_it_is_packed_is_not_read_as_it_is(server: Server, coding: str) -> None:
    answer = server.http.post("/generate", content=_BODY, headers={**JSON, "Content-Encoding": coding})
    assert answer.status_code == 415
    plain = server.http.post("/generate", content=_BODY, headers={**JSON, "Content-Encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_closed(server: Server, content: bytes) -> None:
    assert _exchange(server, content).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("content", [b"X: " + b"a" * 40_000, b"X: a\r\n" * 8_000], ids=["long", "many"])
def test_headers_without_an_end_are_cut_off(server: Server, content: bytes) -> None:
    with _connect(server) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n")
        found = b""
        try:
            for _ in range(1000):  # 40 MB, if nobody objects
                connection.sendall(content)
            found = connection.recv(65536)
        except OSError:  # it was closed before all was sent, and perhaps before its answer was read
            return
    assert found.startswith(b"HTTP/1.1 431 ")


CHUNKED = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n%s\r\n"


def test_what_stands_behind_a_body_is_no_header(serve: Serve) -> None:
    body = b"%x\r\n%s\r\n0\r\n" % (len(_BODY), _BODY)
    with serve(api_key="secret") as locked:
        key = b"Authorization: Bearer secret\r\n"
        for header, trailer, status in ((b"", key, b"401"), (key, b"Host: evil\r\n", b"200")):
            with _connect(locked) as connection:
                connection.sendall(CHUNKED % header + body + trailer + b"\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    "padding",
    [b"%x\r\n%s\r\n0\r\n" % (len(_BODY), _BODY) + b"T: a\r\n" * 10_000, b"1;" + b"e" * 70_000],
    ids=["trailers", "extension"],
)
def test_what_is_around_a_body_is_bounded_as_headers_are(server: Server, padding: bytes) -> None:
    taken = 0
    with _connect(server) as connection, suppress(OSError):
        connection.sendall(CHUNKED % b"" + padding)
        for _ in range(1000):  # 60 MB, if nobody objects
            connection.sendall(padding[-60_000:])
            taken += 60_000
    assert taken < 32 << 20, "more than the kernel buffers was read before anybody objected"
    tiny = b"".join(b"1\r\n%c\r\n" % one for one in _BODY + b" " * 100_000) + b"0\r\n\r\n"
    with _connect(server) as connection:  # chunks of one byte have more around them than in them
        connection.sendall(CHUNKED % b"" + tiny)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("begun", "what"),
    [
        (b"", b"headers"),
        (b"GET /ping HTTP/1.1\r\nHo", b"headers"),
        (PING + b"GET /pi", b"headers"),
        (POST[:-10], b"body"),
    ],
    ids=["nothing", "half a header", "half a second one", "half a body"],
)
def test_a_client_that_does_not_go_on_is_let_go(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: bytes, what: bytes
) -> None:
    with serve() as server:
        with monkeypatch.context() as hurried:
            hurried.setattr(protocol, "_SECONDS", 0.1)
            with _connect(server) as connection:
                connection.sendall(begun)
                found = b""
                while part := connection.recv(65536):  # until it is closed
                    found += part
            if what == b"headers":
                assert b"HTTP/1.1 408 " in found
                assert b"Waited 0.1 s for the headers." in found
        assert server.load()["num_total_reqs"] == 0
        assert server.generate()["output_ids"]


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /ping HTTP/1.1\r\nHo", POST[:-10], PING],
    ids=["nothing", "half a header", "half a body", "idle"],
)
def test_connections_without_number_do_not_shut_out_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    most = 40
    monkeypatch.setattr(protocol, "most_connections", lambda: most)
    with serve() as server, ExitStack() as others:
        running = others.enter_context(server.running(rid="one that is worked on"))
        for _ in range(4):
            with ThreadPoolExecutor(most) as pool:  # so that many come in one turn of the event loop
                for one in pool.map(lambda _: _connect(server), range(2 * most)):
                    others.enter_context(one)
                    with suppress(ConnectionError):  # it may have been ended already
                        one.sendall(begun)
            # On a connection of its own: an idle one may be ended at any time.
            assert httpx.get(f"{server.url}/ping", timeout=30).status_code == 200
            assert (
                httpx.post(f"{server.url}/generate", content=_BODY, headers=JSON, timeout=30).status_code
                == 200
            )
        assert next(running), "what is worked on is nobody's to end"


def test_a_process_may_have_room_for_as_many_connections_as_its_files_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for soft, room in ((1024, 384), (700, 64), (100_000, 16_384), (resource.RLIM_INFINITY, 16_384)):
        monkeypatch.setattr(protocol.resource, "getrlimit", lambda what, soft=soft: (soft, soft))
        assert protocol.most_connections() == room


@pytest.mark.parametrize("begun", [b"GET /pi", POST[:-10]], ids=["headers", "body"])
def test_half_a_request_behind_another_does_not_cost_the_first_its_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    overdue: list[str] = []
    look = protocol.BoundedProtocol._overdue

    def noted(connection: protocol.BoundedProtocol, what: str) -> None:
        overdue.append(what)
        look(connection, what)

    monkeypatch.setattr(protocol.BoundedProtocol, "_overdue", noted)
    with serve() as server:
        server.post("/pause_generation")
        monkeypatch.setattr(protocol, "_SECONDS", 0.2)
        with _connect(server) as connection:
            connection.sendall(POST + begun)
            server.eventually(lambda: server.load()["num_waiting_reqs"] == 1)
            server.eventually(lambda: bool(overdue))  # the second has taken longer than it may
            server.post("/continue_generation")
            found = b""
            while part := connection.recv(65536):
                found += part
    assert found.startswith(b"HTTP/1.1 200 ")
    assert b"output_ids" in found


def test_a_client_that_takes_its_time_between_two_requests_is_not(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server, _connect(server) as connection:
        for _ in range(3):
            connection.sendall(PING)
            answer = b""
            while not answer.endswith(b"}"):  # headers and body may come apart
                part = connection.recv(65536)
                assert part, f"closed after {answer!r}"
                answer += part
            assert answer.startswith(b"HTTP/1.1 200 ")
            monkeypatch.setattr(protocol, "_SECONDS", 0.1)  # of a request; the first needs a connection first
            threading.Event().wait(0.3)  # longer than one may take to arrive


# -- Methods --------------------------------------------------------------------------------------------------


def test_asking_for_headers_alone_steers_nothing(server: Server, models: Models) -> None:
    for path in ("/flush_cache", "/release_memory_occupation", "/resume_memory_occupation"):
        answer = server.http.request("HEAD", path)
        assert (path, answer.status_code) == (path, 405)
        assert "HEAD" not in answer.headers["allow"]
        assert server.http.request("OPTIONS", path).status_code == 405
    assert server.http.request("HEAD", "/health").status_code == 200


# -- Generation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"text": ""}, "empty"),
        ({"text": ["a", ""]}, "empty"),
        ({"input_ids": [[1], []]}, "empty"),
        ({"input_ids": [True]}, "input_ids"),
        ({"input_ids": ["1"]}, "input_ids"),
        ({"input_ids": [1.0]}, "input_ids"),
        ({"input_ids": [1, [2]]}, "input_ids"),
        ({"input_ids": [None]}, "input_ids"),
        ({"input_ids": [2**31]}, "32 bits"),
        ({"text": "a", "rid": "x" * 1001}, "rid"),
        ({"text": ["a"] * 2000}, "2000 sequences"),
        ({"text": "a", "sampling_params": {"temperature": 1e308}}, "temperature"),
        ({"text": "a", "sampling_params": {"n": 3, "sampling_seed": 2**63 - 1}}, "64 bits"),
        ({"text": "a", "sampling_params": {"logit_bias": {"1": 1, "01": 2}}}, "twice"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 10**30}, "log-probabilities"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_which_part(
    server: Server, document: dict[str, object], reason: str
) -> None:
    answer = server.post("/generate", document)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1e-300},
        {"temperature": 1e6},
        {"temperature": 1.0, "top_p": 1e-300},
        {"temperature": 1.0, "top_k": 2**31 - 1},
        {"max_new_tokens": 10**400, "stop_token_ids": list(range(384))},
        {"stop": ["z" * 1024] * 256},
        {"logit_bias": {str(token): -100 for token in range(384)}},
        {"repetition_penalty": 100, "temperature": 1.0},
        {"min_new_tokens": 2, "stop_token_ids": list(range(300))},
    ],
    ids=str,
)
def test_an_odd_request_that_makes_sense_is_served(server: Server, params: dict[str, object]) -> None:
    assert len(server.generate("a", **{"max_new_tokens": 2, **params})["output_ids"]) in (1, 2)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_others_are_served_while_a_long_prompt_is_understood(server: Server, path: str) -> None:
    """It is read, parsed and made tokens of away from where everybody else is answered."""
    text = "ab " * 150_000
    chat = {"messages": [{"role": "user", "content": text}]}
    document = {"/generate": {"text": text}, "/v1/completions": {"prompt": text}}.get(path, chat)
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, trust_env=False) as other:
        long = pool.submit(server.post, path, document)
        meanwhile = 0
        while not long.done():
            assert other.get("/ping").status_code == 200
            meanwhile += 1
    assert meanwhile > 5
    assert long.result().status_code == 400
    assert "takes fewer than" in long.result().json()["error"]["message"]


def test_a_schema_that_would_end_the_process_is_refused(server: Server) -> None:
    """A chain of references takes a level of the stack for each, where it is compiled."""
    chain = {f"{at}": {"anyOf": [{"$ref": f"#/$defs/{at + 1}"}, {"type": "null"}]} for at in range(1900)}
    schema = {"$defs": {**chain, "1900": {"type": "null"}}, "$ref": "#/$defs/0"}
    wishes = {"/generate": {"sampling_params": {"json_schema": schema}, "text": "a"}}
    wished = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    chat = {"messages": [{"role": "user", "content": "a"}], "response_format": wished}
    wishes["/v1/chat/completions"] = chat
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    for path, wish in [*wishes.items(), ("/v1/chat/completions", {**chat, "response_format": None})]:
        more = {} if wish.get("response_format", 1) else {"tools": [tool], "tool_choice": "required"}
        answer = server.post(path, {**wish, **more})
        assert answer.status_code == 400, answer.text
        assert "characters, and 65536 are the most" in answer.json()["error"]["message"]


def test_who_waits_for_a_grammar_holds_up_no_long_body(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = server.serving.engine.grammars
    assert grammars is not None
    compiled, go_on, asked = grammars.matcher, threading.Event(), threading.Semaphore(0)

    def slow(grammar: Grammar) -> GrammarMatcher:
        asked.release()
        assert go_on.wait(60)
        return compiled(grammar)

    monkeypatch.setattr(grammars, "matcher", slow)
    wish = {"text": "a", "sampling_params": {"regex": "a", "max_new_tokens": 1}}
    long = {"text": "a", "sampling_params": {"max_new_tokens": 1}, "user": "x" * 100_000}
    with ThreadPoolExecutor(40) as pool:
        try:
            waiting = [pool.submit(server.post, "/generate", wish) for _ in range(40)]
            assert asked.acquire(timeout=60)
            with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as other:
                assert other.post("/generate", json=long).status_code == 200
        finally:
            go_on.set()
        assert {one.result().status_code for one in waiting} == {200}


@pytest.mark.parametrize(
    ("wish", "entries"),
    [
        ({"top_logprobs_num": 99, "sampling_params": {"n": 100, "max_new_tokens": 401}}, 100 * 401 * 100),
        (
            {"token_ids_logprob": [1] * 99, "sampling_params": {"n": 100, "max_new_tokens": 401}},
            100 * 401 * 100,
        ),
        (
            {
                "top_logprobs_num": 199,
                "logprob_start_len": 1,
                "sampling_params": {"n": 50, "max_new_tokens": 1},
            },
            50 * 200 * 500,
        ),
    ],
    ids=["best", "chosen", "of the prompt"],
)
def test_all_that_an_answer_may_hold_is_counted(
    server: Server, wish: dict[str, object], entries: int
) -> None:
    answer = server.post("/generate", {"input_ids": [5] * 500, "return_logprob": True, **wish})
    assert answer.status_code == 400, answer.json()["meta_info"].keys()
    assert f"up to {entries} log-probabilities" in answer.json()["error"]["message"]


def test_no_request_is_sent_on_to_where_its_host_header_says(server: Server) -> None:
    for path in ("/flush_cache/", "/generate/", "/ping/"):
        answer = server.http.post(path, json={}, headers={"Host": "localhost"}, follow_redirects=False)
        assert answer.status_code == 404
        assert "location" not in answer.headers


# -- Chat templates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"tokenize": False},
        {"chat_template": "{{ 1 / 0 }}"},
        {"conversation": []},
        {"return_tensors": "pt"},
        {"max_length": 1, "truncation": True},
        {"tools": "x"},
        {"documents": [1]},
        {"messages": []},
        {"self": 1},
    ],
    ids=str,
)
def test_arguments_for_the_template_reach_nothing_but_the_template(
    server: Server, given: dict[str, object]
) -> None:
    document = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    answer = server.post("/v1/chat/completions", {**document, "chat_template_kwargs": given})
    assert answer.status_code == 400
    assert "template" in answer.json()["error"]["message"]


def test_what_a_user_writes_is_no_template(server: Server) -> None:
    document = {"messages": [{"role": "{{ 7 * 7 }}", "content": "{% raw %}{{ m }}"}], "max_tokens": 1}
    answer = server.post("/v1/chat/completions", document)
    text = "<{{ 7 * 7 }}>{% raw %}{{ m }}<assistant>"
    assert answer.json()["usage"]["prompt_tokens"] == len(server.serving.engine.encode(text))


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% for %}", "{{ messages[9].content.x }}", "{{ nothing() }}"]
)
def test_a_template_that_is_broken_is_said_and_breaks_nothing_else(serve: Serve, template: str) -> None:
    with serve(chat_template=template) as server:
        answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
        assert answer.status_code == 400
        assert "chat template" in answer.json()["error"]["message"]
        assert server.generate()["output_ids"]


# -- Control --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["", "~", "$HOME", "..", "file:///tmp", "/dev/stdin", "/proc/self/root", "a" * 5000]
)
def test_no_path_but_one_to_a_model_in_an_allowed_directory_is_read(server: Server, path: str) -> None:
    answer = server.post("/update_weights_from_disk", {"model_path": path})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    within = server.post(
        "/update_weights_from_disk", {"model_path": str(server.serving.weights_roots.roots[0] / path)}
    )
    assert within.status_code == 400


def test_verbs_from_everywhere_at_once_are_each_answered(server: Server, models: Models) -> None:
    verbs = [
        ("/pause_generation", {"mode": "retract"}),
        ("/continue_generation", {}),
        ("/flush_cache?timeout=0.1", {}),
        ("/drain", {"timeout": 0.1}),
        ("/transaction", {"settle": "abort"}),
        ("/begin_weight_update", {}),
        ("/end_weight_update", {}),
        ("/release_memory_occupation", {"tags": ["kv_cache"]}),
        ("/resume_memory_occupation", {}),
        ("/abort_request", {"abort_all": True}),
        ("/update_weight_version", {"new_version": "x"}),
    ]
    answers: list[int] = []

    def send(path: str, document: dict[str, object]) -> None:
        answers.append(server.post(path, document).status_code)

    threads = [threading.Thread(target=send, args=verb) for verb in verbs * 5]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(answers) == 55
    assert set(answers) <= {200, 400, 409}
    server.restore(models)
