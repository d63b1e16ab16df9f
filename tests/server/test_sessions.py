"""Drain, sessions, transactions, tensors in requests, and looking at weights."""

from __future__ import annotations

import base64
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from safetensors.torch import load_file, save

from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.weights.store import Model
from tests.server.conftest import Models, Serve, Server


@pytest.fixture
def server(serve: Serve) -> Iterator[Server]:
    with serve() as running:
        yield running


def _payload(models: Models) -> dict[str, object]:
    content = save(load_file(models.b / "model.safetensors"))
    return {"serialized_named_tensors": [base64.b64encode(content).decode()]}


# -- Drain ----------------------------------------------------------------------------------------------------


def test_drain_lets_requests_end_and_then_is_a_pause(server: Server) -> None:
    params = {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True}
    with server.streaming({"text": "The sea", "sampling_params": params}) as stream:
        next(stream)
        drained = server.post("/drain", {"timeout": 20})
        assert drained.status_code == 200
        assert drained.json()["remaining_requests"] == 0
        [*_, last] = stream
    assert last["meta_info"]["completion_tokens"] == 60
    assert server.get("/ready").status_code == 503
    server.post("/continue_generation")
    assert server.generate()["output_ids"]


def test_a_drain_that_takes_too_long_says_what_remains_and_goes_on(server: Server) -> None:
    with server.running() as stream:
        answer = server.post("/drain", {"timeout": 0.05})
        assert answer.status_code == 409
        assert (answer.json()["remaining_requests"], answer.json()["refusal"]) == (1, "timed_out")
        assert server.get("/ready").status_code == 200
        next(stream)


def _asked(server: Server) -> list[httpx.Response]:
    """What each way to ask for a token is answered, whole and as a stream."""
    messages = [{"role": "user", "content": "a"}]
    return [
        server.post(path, {**document, "stream": stream})
        for path, document in (
            ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 1}}),
            ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
            ("/v1/chat/completions", {"messages": messages, "max_tokens": 1}),
        )
        for stream in (False, True)
    ]


def _states(server: Server) -> list[tuple[int, str]]:
    """What probes are told: of life, of traffic, of ability."""
    answers = [server.get(path) for path in ("/health", "/ready", "/health_generate")]
    return [(one.status_code, one.json()["status"]) for one in answers]


def test_new_requests_are_turned_away_from_when_a_drain_begins_until_generation_is_continued(
    server: Server,
) -> None:
    def turned_away(word: str) -> None:
        assert _states(server) == [(200, word), (503, word), (200, word)]
        assert word in server.get("/ready").json()["error"]["message"]
        for answer in _asked(server):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), answer.text
            assert word in answer.json()["error"]["message"]

    with server.running(rid="runs") as stream, ThreadPoolExecutor(1) as pool:
        draining = pool.submit(server.post, "/drain", {"timeout": 60})
        server.eventually(lambda: server.get("/ready").status_code == 503)
        turned_away("draining")
        assert next(stream)["output_ids"], "what ran goes on"
        server.post("/abort_request", {"rid": "runs"})
        assert draining.result().status_code == 200
    turned_away("drained")
    assert server.post("/drain").status_code == 200, "draining twice is draining once"
    assert server.post("/pause_generation", {"mode": "retract"}).status_code == 200
    turned_away("drained")
    server.post("/continue_generation")
    assert [state for _, state in _states(server)] == ["ok"] * 3
    assert {one.status_code for one in _asked(server)} == {200}


def test_a_drain_that_was_given_up_turns_nobody_away(server: Server) -> None:
    with server.running(rid="runs"):
        assert server.post("/drain", {"timeout": 0}).status_code == 409
        with pytest.raises(httpx.ReadTimeout):  # the operator goes away
            server.post("/drain", {"timeout": 60}, timeout=0.2)
        server.eventually(lambda: server.get("/ready").status_code == 200)
        assert {one.status_code for one in _asked(server)} == {200}


def test_requests_wait_during_a_pause_whatever_was_drained_before(server: Server) -> None:
    server.post("/drain")
    server.post("/continue_generation")
    server.post("/pause_generation", {"mode": "in_place"})
    assert _states(server) == [(200, "paused"), (503, "paused"), (200, "paused")]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(server.generate, "a", max_new_tokens=1)
        server.eventually(lambda: server.load()["num_waiting_reqs"] == 1)
        assert not asking.done()
        server.post("/continue_generation")
        assert asking.result()["output_ids"]


def test_what_came_before_a_drain_and_has_not_started_keeps_its_place(serve: Serve) -> None:
    with serve(max_running=1) as server, ThreadPoolExecutor(2) as pool, server.running(rid="runs"):
        waiting = pool.submit(server.generate, "a", max_new_tokens=1)
        server.eventually(lambda: server.load()["num_waiting_reqs"] == 1)
        draining = pool.submit(server.post, "/drain", {"timeout": 60})
        server.eventually(lambda: server.get("/ready").status_code == 503)
        server.post("/abort_request", {"rid": "runs"})
        assert draining.result().json()["waiting_requests"] == 1
        assert not waiting.done()
        server.post("/continue_generation")
        assert waiting.result()["output_ids"]


def test_a_drain_within_a_transaction_turns_nobody_away(server: Server, models: Models) -> None:
    with server.running(rid="runs"), ThreadPoolExecutor(2) as pool:
        update = {"model_path": str(models.b), "weight_version": "7", "settle": "drain", "timeout": 60}
        updating = pool.submit(server.post, "/transaction", update)
        server.eventually(lambda: len(server.get("/status").json()["pending"]) == 1)
        asking = pool.submit(server.generate, "a", max_new_tokens=1)
        server.eventually(lambda: server.load()["num_waiting_reqs"] == 1 or asking.done())
        server.post("/abort_request", {"rid": "runs"})
        assert updating.result().status_code == 200
        assert asking.result()["output_ids"]


def test_a_pause_can_end_by_itself(server: Server) -> None:
    began = time.monotonic()
    server.post("/pause_generation", {"mode": "retract", "continue_after": 0.2})
    assert server.generate()["output_ids"]
    assert time.monotonic() - began >= 0.2


# -- Tensors in requests, sessions ----------------------------------------------------------------------------


def test_tensors_in_the_request_become_the_weights(server: Server, models: Models) -> None:
    answer = server.post("/update_weights_from_tensor", {**_payload(models), "weight_version": "7"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outcome"] == "updated"
    with_tensors = server.generate()
    assert with_tensors["meta_info"]["weight_version"] == "7"
    server.post("/update_weights_from_disk", {"model_path": str(models.b)})
    assert server.generate()["output_ids"] == with_tensors["output_ids"]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"serialized_named_tensors": [base64.b64encode(pickle.dumps({"a": 1})).decode()]}, "run code"),
        ({"serialized_named_tensors": ["no base64!"]}, "base64"),
        ({"serialized_named_tensors": []}, "one rank"),
        ({"serialized_named_tensors": [""]}, "safetensors"),
        ({"serialized_named_tensors": ["AAAA"], "load_format": "pickle"}, "pickle"),
        ({}, "serialized_named_tensors"),
    ],
)
def test_what_is_no_safetensors_is_refused(server: Server, document: dict[str, object], reason: str) -> None:
    answer = server.post("/update_weights_from_tensor", document)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    assert server.get("/get_weight_version").json() == {"weight_version": "default"}


def test_tensors_that_do_not_fit_change_nothing(server: Server) -> None:
    before = server.generate()["output_ids"]
    content = save({"model.norm.weight": torch.zeros(3)})
    document = {"serialized_named_tensors": [base64.b64encode(content).decode()]}
    answer = server.post("/update_weights_from_tensor", document)
    assert answer.status_code == 400
    assert answer.json()["outcome"] == "unchanged"
    assert server.generate()["output_ids"] == before


def test_nothing_is_generated_within_a_session_and_its_end_sums_it_up(server: Server, models: Models) -> None:
    assert server.post("/begin_weight_update", {"selector": "all"}).status_code == 200
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(server.generate)
        server.eventually(lambda: server.load()["num_waiting_reqs"] == 1)
        server.post("/update_weights_from_tensor", {**_payload(models), "weight_version": "7"})
        assert not waiting.done()
        ended = server.post("/end_weight_update")
        assert ended.status_code == 200
        assert (ended.json()["updates"], ended.json()["outcome"]) == (1, "updated")
        assert waiting.result()["meta_info"]["weight_version"] == "7"


def test_a_session_is_begun_once_and_ended_once(server: Server) -> None:
    assert server.post("/end_weight_update").status_code == 400
    assert server.post("/begin_weight_update").status_code == 200
    assert server.post("/begin_weight_update").status_code == 400
    assert server.post("/end_weight_update").status_code == 200


# -- Transactions ---------------------------------------------------------------------------------------------


def test_a_transaction_does_everything_and_answers_for_each_step(server: Server, models: Models) -> None:
    params = {"max_new_tokens": 60, "temperature": 0, "ignore_eos": True}
    with server.streaming({"text": "The sea", "sampling_params": params}) as stream:
        next(stream)
        document = {"model_path": str(models.b), "weight_version": "2"}
        answer = server.post("/transaction", document)
        assert answer.status_code == 200, answer.text
        assert [step["name"] for step in answer.json()["steps"]] == ["retract", "update", "flush", "continue"]
        assert (answer.json()["outcome"], answer.json()["paused"]) == ("updated", False)
        [*_, last] = stream
    assert last["meta_info"]["completion_tokens"] == 60
    assert [span["version"] for span in last["meta_info"]["weight_versions"]] == ["default", "2"]


def test_a_transaction_that_fails_says_where_and_leaves_generation_running(
    server: Server, models: Models
) -> None:
    (models.root / "empty").mkdir(exist_ok=True)
    answer = server.post("/transaction", {"model_path": str(models.root / "empty")})
    assert answer.status_code == 400
    assert (answer.json()["failed"], answer.json()["outcome"]) == ("update", "unchanged")
    assert server.get("/ready").status_code == 200
    assert server.post("/transaction", {"model_path": "/"}).status_code == 400


def test_a_transaction_that_cannot_continue_is_a_conflict(server: Server) -> None:
    server.post("/release_memory_occupation", {"tags": ["kv_cache"]})
    answer = server.post("/transaction", {"flush_cache": False})
    assert (answer.status_code, answer.json()["failed"]) == (409, "continue")
    assert answer.json()["error"]["type"] == answer.json()["refusal"] == "conflict"


# -- Target and draft -----------------------------------------------------------------------------------------


def test_without_a_draft_model_selecting_it_is_refused_and_says_so(server: Server, models: Models) -> None:
    before = server.generate()["output_ids"]
    for path, document in (
        ("/update_weights_from_disk", {"model_path": str(models.b)}),
        ("/update_weights_from_tensor", _payload(models)),
        ("/update_weights_from_ipc", {"handles": {"a": {}}}),
        ("/begin_weight_update", {}),
        ("/weights_checker", {}),
    ):
        answer = server.post(path, {**document, "selector": "draft"})
        assert (path, answer.status_code) == (path, 400)
        assert answer.json()["error"]["message"] == "This engine has no draft model."
        assert server.post(path, {**document, "selector": "both"}).status_code == 400
    assert server.generate()["output_ids"] == before


def test_a_registered_draft_model_is_updated_alone_or_with_the_target(server: Server, models: Models) -> None:
    engine = server.serving.engine
    draft = TransformersRunner.load(models.a, engine.device)
    engine.weights.register_draft(Model(draft), draft)

    def digests() -> list[str]:
        kinds = ("target", "draft")
        found = [server.post("/weights_checker", {"selector": one}).json() for one in kinds]
        return [one["per_engine_checksum"] for one in found]

    [a, same] = digests()
    assert a == same
    server.post("/update_weights_from_disk", {"model_path": str(models.b), "selector": "draft"})
    [target, b] = digests()
    assert target == a != b
    answer = server.post("/update_weights_from_disk", {"model_path": str(models.b)}).json()
    assert digests() == [b, b]
    one_by_one = server.post("/update_weights_from_tensor", {**_payload(models), "selector": "target"}).json()
    assert answer["tensors"] == 2 * one_by_one["tensors"]


# -- Looking --------------------------------------------------------------------------------------------------


def test_weights_can_be_read_and_compared(server: Server, models: Models) -> None:
    stored = load_file(models.a / "model.safetensors")["model.norm.weight"]
    for answer in (
        server.post("/get_weights_by_name", {"name": "model.norm.weight", "truncate_size": 5}),
        server.get("/get_weights_by_name", name="model.norm.weight", truncate_size=5),
    ):
        assert answer.json() == stored[:5].tolist()
    assert server.post("/get_weights_by_name", {"name": "nobody"}).status_code == 400
    before = server.post("/weights_checker", {"action": "checksum"}).json()["per_engine_checksum"]
    server.post("/update_weights_from_tensor", _payload(models))
    assert server.post("/weights_checker").json()["per_engine_checksum"] != before
    server.post("/update_weights_from_disk", {"model_path": str(models.a)})
    assert server.post("/weights_checker").json()["per_engine_checksum"] == before


def test_numbers_that_json_has_not_are_null(server: Server) -> None:
    name = "model.norm.weight"
    values = torch.full((64,), float("inf"))
    document = {"serialized_named_tensors": [base64.b64encode(save({name: values})).decode()]}
    answer = server.post("/update_weights_from_tensor", document)
    assert answer.status_code == 200, answer.text
    assert server.post("/get_weights_by_name", {"name": name, "truncate_size": 2}).json() == [None, None]


def test_the_version_can_be_renamed(server: Server) -> None:
    answer = server.post("/update_weight_version", {"new_version": "9", "abort_all_requests": False})
    assert (answer.status_code, answer.json()["new_version"]) == (200, "9")
    assert server.get("/get_weight_version").json() == {"weight_version": "9"}
    assert server.post("/update_weight_version", {"new_version": ""}).status_code == 400
