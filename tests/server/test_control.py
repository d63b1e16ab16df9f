"""Flush, pause, continue, abort, and what health says meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from devicekit.scheduling.messages import Blocker, Refusal, Reply
from devicekit.server.control import answer, answer_by_kind
from tests.server.conftest import LONG, Serve, Server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    shared.post("/abort_request", {"abort_all": True})
    shared.post("/continue_generation")
    shared.eventually(lambda: shared.load()["num_total_reqs"] == 0)


# -- Flush ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_flush_forgets_cached_prefixes(server: Server, method: str) -> None:
    server.generate(list(range(2, 50)))
    answer = server.http.request(method, "/flush_cache")
    assert answer.status_code == 200
    assert answer.json()["success"] is True
    assert answer.json()["pages_freed"] > 0
    assert server.generate(list(range(2, 50)))["meta_info"]["cached_tokens"] == 0


def test_flush_while_busy_is_refused_with_what_is_in_the_way(server: Server) -> None:
    with server.running():
        answer = server.get("/flush_cache")
    assert answer.status_code == 400
    assert answer.json()["blockers"] == [{"name": "running", "count": 1}]
    assert "running=1" in answer.json()["message"]


def test_flush_with_a_timeout_waits_for_the_engine_to_be_idle(server: Server) -> None:
    with ThreadPoolExecutor() as pool, server.running(rid="in the way"):
        waiting = pool.submit(server.get, "/flush_cache", timeout=25)
        server.eventually(lambda: bool(server.get("/status").json()["pending"]))
        assert not waiting.done()
        assert server.post("/abort_request", {"rid": "in the way"}).status_code == 200
        assert waiting.result().status_code == 200


def test_flush_that_waits_too_long_says_for_what(server: Server) -> None:
    with server.running():
        answer = server.get("/flush_cache", timeout=0.05)
    assert answer.status_code == 400
    assert answer.json()["message"] == "Timed out after 0.05 s waiting for: running=1."
    assert answer.json()["seconds"] >= 0.05


def test_several_flushes_at_once_are_each_answered(server: Server) -> None:
    with ThreadPoolExecutor() as pool, server.running(rid="in the way"):
        waiting = [pool.submit(server.get, "/flush_cache", timeout=25) for _ in range(4)]
        server.eventually(lambda: len(server.get("/status").json()["pending"]) == 4)
        server.post("/abort_request", {"rid": "in the way"})
        assert [one.result().status_code for one in waiting] == [200] * 4


@pytest.mark.parametrize("timeout", ["nan", "inf", "-inf", "-1", "soon", "1e999", ""])
def test_a_timeout_that_is_no_time_is_refused(server: Server, timeout: str) -> None:
    answer = server.get("/flush_cache", timeout=timeout)
    assert answer.status_code == 400
    assert "timeout" in answer.json()["error"]["message"]


def test_unknown_arguments_are_let_pass_and_named_in_the_answer(server: Server) -> None:
    """Some clients still send arguments that engines have dropped: neither an error, nor silently ignored."""
    for found in (
        server.get("/flush_cache", reset_connector="true", timeout=0),
        server.post("/flush_cache", {"reset_connector": True}),
        server.post("/continue_generation", {"reset_connector": True, "torch_empty_cache": False}),
        server.post(
            "/generate", {"text": "a", "reset_connector": 1, "sampling_params": {"max_new_tokens": 1}}
        ),
    ):
        assert (found.status_code, found.headers["x-devicekit-ignored"]) == (200, "reset_connector")
    assert "x-devicekit-ignored" not in server.get("/flush_cache", timeout=0).headers
    odd = server.post("/flush_cache", {"a\r\nSet-Cookie: b": 1, "é": 2, "x" * 100: 3, "fine": 4})
    assert odd.headers["x-devicekit-ignored"] == "fine"


def test_a_flush_may_be_described_in_its_body(server: Server) -> None:
    with server.running():
        answer = server.post("/flush_cache", {"timeout": 0.05})
        assert answer.json()["message"] == "Timed out after 0.05 s waiting for: running=1."
        assert server.post("/flush_cache?timeout=0").json()["refusal"] == "busy"
        both = server.post("/flush_cache?timeout=0", {"timeout": 9})
        assert (both.status_code, "timeout is given twice" in both.text) == (400, True)
    assert server.http.post("/flush_cache", content=b"{").status_code == 400


def test_a_flush_that_cannot_wait_is_refused_beside_one_that_does_and_leaves_it_waiting(
    server: Server,
) -> None:
    with ThreadPoolExecutor() as pool, server.running(rid="in the way"):
        waiting = pool.submit(server.get, "/flush_cache", timeout=25)
        server.eventually(lambda: bool(server.get("/status").json()["pending"]))
        assert server.get("/flush_cache").json()["refusal"] == "busy"
        assert len(server.get("/status").json()["pending"]) == 1
        server.post("/abort_request", {"rid": "in the way"})
        assert waiting.result().status_code == 200


def test_flush_while_paused_ignores_waiting_requests_with_or_without_a_timeout(server: Server) -> None:
    with server.running():
        server.post("/pause_generation", {"mode": "retract"})
        assert server.load()["num_waiting_reqs"] == 1
        assert server.get("/flush_cache").status_code == 200
        answer = server.get("/flush_cache", timeout=20).json()
        assert answer["success"] is True
        assert answer["seconds"] < 20


def test_a_client_that_leaves_a_flush_does_not_confuse_the_next(server: Server) -> None:
    with server.running(rid="in the way"):
        with (
            httpx.Client(base_url=server.url, trust_env=False) as impatient,
            pytest.raises(httpx.ReadTimeout),
        ):
            impatient.get("/flush_cache?timeout=0.2", timeout=httpx.Timeout(30, read=0.05))
        answer = server.get("/flush_cache", timeout=0.1).json()
        assert "0.1 s" in answer["message"]


# -- Pause and continue ---------------------------------------------------------------------------------------


def test_pause_by_default_ends_requests_and_says_how_many(server: Server) -> None:
    with server.running() as stream:
        answer = server.post("/pause_generation")
        assert answer.json()["message"] == "Generation paused successfully."
        assert (answer.json()["status"], answer.json()["aborted"]) == ("ok", 1)
        [*_, last] = stream
    assert last["meta_info"]["finish_reason"]["type"] == "abort"


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_requests_survive_other_pauses_with_the_same_tokens(server: Server, mode: str) -> None:
    params = {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True}
    undisturbed = server.generate("The sea", **params)["output_ids"]
    with server.streaming({"text": "The sea", "sampling_params": params}) as stream:
        next(stream)
        paused = server.post("/pause_generation", {"mode": mode}).json()
        assert (paused["aborted"], paused["retracted"]) == (0, int(mode == "retract"))
        assert server.post("/continue_generation", {"torch_empty_cache": False}).json()["release"] == {
            "point": "continue",
            "emptied": False,
            "reason": "not requested",
            "reserved_before": None,
            "reserved_after": None,
            "released": None,
            "seconds": 0.0,
            "error": None,
        }
        [*_, last] = stream
    assert last["output_ids"] == undisturbed


def test_pausing_and_continuing_twice_is_the_same_as_once(server: Server) -> None:
    first, second = (server.post("/pause_generation").json() for _ in range(2))
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["epoch"] == second["epoch"]
    first, second = (server.post("/continue_generation").json() for _ in range(2))
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["epoch"] == second["epoch"]


def test_a_pause_that_nobody_ends_ends_by_itself_if_asked_to(server: Server) -> None:
    with server.running() as stream:
        paused = server.post("/pause_generation", {"mode": "in_place", "continue_after": 0.05}).json()
        server.eventually(lambda: server.get("/ready").status_code == 200)
        assert server.get("/status").json()["engine"]["epoch"] == paused["epoch"] + 1
        next(stream)


def test_an_unknown_mode_is_refused_and_pauses_nothing(server: Server) -> None:
    answer = server.post("/pause_generation", {"mode": "gently"})
    assert answer.status_code == 400
    assert "mode" in answer.json()["error"]["message"]
    assert server.get("/ready").status_code == 200


def test_requests_that_come_while_paused_wait(server: Server) -> None:
    server.post("/pause_generation")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.generate)
        server.eventually(lambda: server.load()["num_waiting_reqs"] == 1)
        assert not waiting.done()
        server.post("/continue_generation")
        assert len(waiting.result()["output_ids"]) > 0


def test_health_knows_paused_from_ill(server: Server) -> None:
    server.post("/pause_generation")
    for path, code in (("/health", 200), ("/health_generate", 200), ("/ready", 503), ("/ping", 200)):
        answer = server.http.get(path)
        assert (path, answer.status_code) == (path, code)
    assert server.get("/health").json()["status"] == "paused"
    server.post("/continue_generation")
    for path in ("/health", "/health_generate", "/ready", "/ping"):
        assert server.get(path).status_code == 200
    assert server.get("/health").json()["status"] == "ok"


def test_a_pool_out_of_balance_degrades_health_and_nothing_stops(serve: Serve) -> None:
    with serve() as server:
        server.serving.engine.scheduler.state.kv.table.rows.take_one()  # lost: nobody will give it back
        server.generate()
        server.eventually(lambda: server.get("/health").json()["status"] == "degraded")
        answer = server.get("/health")
        assert answer.status_code == 200
        assert "rows" in answer.json()["message"]
        assert server.get("/ready").status_code == server.get("/health_generate").status_code == 200
        assert server.generate()["output_ids"]


def test_loads_are_live_while_paused(server: Server) -> None:
    with server.running(rid="one"):
        server.post("/pause_generation", {"mode": "in_place"})
        assert server.load()["num_running_reqs"] == 1
        server.post("/abort_request", {"rid": "one"})
        assert server.load()["num_running_reqs"] == 0


def test_a_paused_engine_sleeps(server: Server) -> None:
    with server.running():
        server.post("/pause_generation", {"mode": "in_place"})
        before = server.get("/status").json()["engine"]["steps"]
        assert server.get("/flush_cache", timeout=0.5).status_code == 400
        assert server.get("/status").json()["engine"]["steps"] - before < 500


def test_an_idle_engine_sleeps(serve: Serve) -> None:
    with serve() as server:
        before = server.get("/status").json()["engine"]["steps"]
        for _ in range(200):  # takes a while, and is none of the engine's business
            server.get("/ping")
        assert server.get("/status").json()["engine"]["steps"] - before <= 5


# -- Abort ----------------------------------------------------------------------------------------------------


def test_abort_by_id_reaches_all_sequences_of_a_request_and_no_other(server: Server) -> None:
    with ThreadPoolExecutor() as pool, server.running(rid="stays"):
        document = {"text": ["a", "b"], "rid": "goes", "sampling_params": LONG}
        waiting = pool.submit(server.post, "/generate", document)
        server.eventually(lambda: server.load()["num_running_reqs"] == 3)
        assert server.post("/abort_request", {"rid": "goes"}).json()["aborted"] == 2
        assert [one["meta_info"]["finish_reason"]["type"] for one in waiting.result().json()] == ["abort"] * 2
        assert server.load()["num_running_reqs"] == 1


def test_abort_can_mean_one_id_and_none_that_begin_with_it(server: Server) -> None:
    with server.running(rid="job1"), server.running(rid="job10"):
        assert server.post("/abort_request", {"rid": "job", "exact": True}).json()["aborted"] == 0
        assert server.post("/abort_request", {"rid": "job1", "exact": True}).json()["aborted"] == 1
        assert server.load()["num_running_reqs"] == 1
        assert server.post("/abort_request", {"rid": "job"}).json()["aborted"] == 1


def test_abort_of_nothing_in_particular_is_refused_and_of_nobody_is_fine(server: Server) -> None:
    assert server.post("/abort_request", {}).status_code == 400
    assert server.post("/abort_request", {"rid": ""}).status_code == 400
    assert server.post("/abort_request", {"rid": "unheard of"}).json()["aborted"] == 0


def test_unknown_paths_and_methods_have_the_shape_of_all_errors(server: Server) -> None:
    for found, code in ((server.get("/nowhere"), 404), (server.get("/generate"), 405)):
        assert found.status_code == code
        assert found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refusal.INVALID, 400),
        (Refusal.FAILED, 400),
        (Refusal.BUSY, 409),
        (Refusal.CONFLICT, 409),
        (Refusal.TIMED_OUT, 409),
        (Refusal.UNSUPPORTED, 501),
    ],
)
def test_the_kind_of_a_refusal_decides_its_status_where_clients_allow(refusal: Refusal, status: int) -> None:
    reply = Reply("one", False, "Not now.", (Blocker("running", 2),), refusal=refusal)
    for answered, code in ((answer_by_kind(reply), status), (answer(reply), 400)):
        document = json.loads(answered.body)
        assert (answered.status_code, document["success"]) == (code, False)
        error = {"message": "Not now.", "type": refusal.value, "param": None, "code": code}
        assert document["error"] == error
        assert document["blockers"] == [{"name": "running", "count": 2}]


def test_operations_that_other_clients_know_are_refused_with_400_and_say_why(server: Server) -> None:
    def refused(path: str) -> str:
        reply = server.post(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, 400), path
        assert reply.json()["error"]["type"] == reply.json()["refusal"]
        return reply.json()["refusal"]

    with server.running():
        assert refused("/flush_cache") == "busy"
    assert refused("/end_weight_update") == "conflict"
    assert refused("/destroy_weights_update_group") == "conflict"
    server.post("/release_memory_occupation", {"tags": ["kv_cache"]})
    server.post("/pause_generation")
    assert refused("/continue_generation") == "conflict"
    server.post("/resume_memory_occupation")
