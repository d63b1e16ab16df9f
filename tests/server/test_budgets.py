"""No request costs more than a small multiple of its bytes before it is refused: every field of every endpoint."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devicekit.contract.errors import DeviceKitError
from devicekit.server.answers import pieces
from devicekit.server.app import ENDPOINTS
from devicekit.server.arguments import MOST_OBJECTS, Arguments
from devicekit.server.bodies import MOST_CONTAINERS, MOST_VALUES, parse
from devicekit.server.endpoints import Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.prompts import tokens_of
from tests.server.conftest import Server

BYTES = 6_000  # of a body, about
WORST: dict[str, Callable[[], object]] = {
    "texts": lambda: ["ab"] * (BYTES // 6),
    "numbers": lambda: [1] * (BYTES // 3),
    "empty lists": lambda: [[]] * (BYTES // 4),
    "lists of texts": lambda: [["a"]] * (BYTES // 7),
    "empty objects": lambda: [{}] * (BYTES // 4),
    "objects that differ": lambda: [{"n": index} for index in range(BYTES // 10)],
    "a long text": lambda: "ab " * (BYTES // 3),
    "an object of texts": lambda: {f"x{index}": "y" for index in range(BYTES // 13)},
    "an object of numbers": lambda: {str(index): 1 for index in range(BYTES // 10)},
    "nested lists": lambda: _nested(300),
}


def _nested(depth: int) -> list[object]:
    found: list[object] = []
    for _ in range(depth):
        found = [found]
    return found


def _fields(
    schema: dict[str, Any], definitions: dict[str, Any], depth: int = 0
) -> Iterator[Callable[[object], Any]]:
    """For each field, however deep, a function that makes a document with a value in that place."""
    for name, field in schema.get("properties", {}).items():
        yield lambda value, name=name: {name: value}
        if depth < 3:
            for wrap, inner in _within(field, definitions):
                for place in _fields(inner, definitions, depth + 1):
                    yield lambda value, name=name, wrap=wrap, place=place: {name: wrap(place(value))}


def _within(
    field: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[tuple[Callable[[object], object], dict[str, Any]]]:
    """The objects that a field may hold, and how they stand in it."""
    if "$ref" in field:
        yield (lambda value: value), definitions[field["$ref"].rpartition("/")[2]]
    for one in field.get("anyOf", ()):
        yield from _within(one, definitions)
    if isinstance(field.get("items"), dict):
        for wrap, inner in _within(field["items"], definitions):
            yield (lambda value, wrap=wrap: [wrap(value)]), inner


def _documents(arguments: type[Arguments]) -> Iterator[Callable[[object], dict[str, object]]]:
    schema = arguments.model_json_schema()
    yield from _fields(schema, schema.get("$defs", {}))
    yield lambda value: {"unheard of": value}


def _seconds(work: Callable[[], object], allowed: float) -> float:
    """CPU seconds: of several tries the least, where one takes longer than it may."""
    least = allowed
    for _ in range(5):
        began = time.process_time()
        work()
        least = time.process_time() - began
        if least < allowed:
            break
    return least


@pytest.mark.parametrize(
    "endpoint", [one for one in ENDPOINTS if one.arguments.model_fields], ids=lambda one: one.path
)
def test_understanding_a_body_costs_a_small_multiple_of_it(endpoint: Endpoint) -> None:
    bodies = {name: make() for name, make in WORST.items()}
    for place in _documents(endpoint.arguments):
        for name, value in bodies.items():
            document = place(value)
            body = json.dumps(document, ensure_ascii=False).encode()

            def understand(body: bytes = body) -> None:
                with contextlib.suppress(DeviceKitError):
                    endpoint._understand(body, {})

            where = f"{name} in {str(document)[:80]}: {len(body)} bytes"
            allowed = 0.02 + 5e-6 * len(body)
            seconds = _seconds(understand, allowed)
            assert seconds < allowed, f"{where}: {seconds:.3f} s"
            tracemalloc.start()
            understand()
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert memory < 2e5 + 60 * len(body), f"{where}: {memory / 1e6:.1f} MB"


def test_parameters_of_each_prompt_cost_a_small_multiple_of_the_body() -> None:
    [endpoint] = [one for one in ENDPOINTS if one.path == "/generate"]
    counts = [{"top_k": index + 1} for index in range(MOST_OBJECTS)]
    body = json.dumps({"input_ids": [[1]] * len(counts), "sampling_params": counts}).encode()
    tracemalloc.start()
    endpoint._understand(body, {})
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 130 * len(body), f"{memory / len(body):.0f} bytes for each byte"


@pytest.mark.parametrize("document", [{}, {"text": "a"}, {"text": ["a"]}, {"input_ids": [1, 2]}], ids=str)
def test_parameters_of_prompts_that_are_not_there_are_counted_and_not_made(
    document: dict[str, object],
) -> None:
    [endpoint] = [one for one in ENDPOINTS if one.path == "/generate"]
    counts = [{"top_k": index + 1} for index in range(MOST_OBJECTS)]
    body = json.dumps({**document, "sampling_params": counts}).encode()
    tracemalloc.start()
    with pytest.raises(BadRequest, match=f"{MOST_OBJECTS} items"):
        endpoint._understand(body, {})
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 50 * len(body), f"{memory / len(body):.0f} bytes for each byte"


GENERATING = {"/generate": {"text": "a"}, "/v1/completions": {"prompt": "a"}, "/v1/chat/completions": {}}
_FEW = {"max_new_tokens": 1, "max_tokens": 1}


@pytest.mark.parametrize("path", GENERATING)
def test_what_a_generation_endpoint_does_with_a_field_costs_a_small_multiple_of_the_body(
    shared: Server, path: str
) -> None:
    """Beyond understanding: making tokens, building requests, telling what is wrong."""
    [endpoint] = [one for one in ENDPOINTS if one.path == path]
    bodies = {name: make() for name, make in WORST.items()}
    for place in _documents(endpoint.arguments):
        for name, value in bodies.items():
            document = {**GENERATING[path], "max_tokens": 1, **place(value)}
            params = document.setdefault("sampling_params", {})
            for one in params if isinstance(params, list) else [params]:
                if isinstance(one, dict):
                    one.setdefault("max_new_tokens", 1)
            body = json.dumps(document, ensure_ascii=False).encode()
            try:
                endpoint._understand(body, {})
            except DeviceKitError:
                continue  # the test above has seen to it
            statuses: list[int] = []

            def ask(body: bytes = body, statuses: list[int] = statuses) -> None:
                answer = shared.http.post(path, content=body, headers={"Content-Type": "application/json"})
                statuses.append(answer.status_code)

            allowed = 0.2 + 20e-6 * len(body)
            seconds = _seconds(ask, allowed)
            where = f"{name} in {str(document)[:80]}: {len(body)} bytes, {statuses}"
            assert max(statuses) < 500, where
            # What was taken has been computed too.
            assert seconds < allowed or min(statuses) == 200, f"{where}: {seconds:.3f} s"
    assert shared.get("/health_generate").status_code == 200


@pytest.mark.parametrize(
    "document",
    [
        {"text": [""] * 50_000},
        {"input_ids": [[]] * 50_000},
        {"input_ids": [[1]] * 1000, "sampling_params": {"n": 128}},
        {"input_ids": [[1]] * 1000, "sampling_params": [{"n": 128}] * 1000},
        {"input_ids": [[1]] * 9000, "sampling_params": [{}] * 9000},
        {"text": "a", "sampling_params": {"stop": ["z"] * 257}},
        {"text": "a", "sampling_params": {"stop": "z" * 1025}},
        {"text": "a", "sampling_params": {"stop_token_ids": [1] * 1025}},
        {"text": "a", "sampling_params": {"logit_bias": {str(token): 1 for token in range(9000)}}},
        {
            "input_ids": [1],
            "sampling_params": {"n": 128, "max_new_tokens": 60_000},
            "return_logprob": True,
            "top_logprobs_num": 20,
        },
        {"text": "ab " * 2_000_000},
        {"text": " " * 4_000_000},
        {"input_ids": [1] * 1_000_000},
    ],
    ids=lambda one: str(one)[:50],
)
def test_what_is_too_much_is_refused_before_it_is_worked_on(
    shared: Server, document: dict[str, object]
) -> None:
    body = json.dumps(document).encode()
    spent = []
    for _ in range(3):  # the least: other threads of this process work as well
        began = time.process_time()
        answer = shared.http.post("/generate", content=body, headers={"Content-Type": "application/json"})
        spent.append(time.process_time() - began)
        assert answer.status_code == 400
    seconds = min(spent)
    assert seconds < 0.5 + 1e-6 * len(body), f"{seconds:.2f} s for {len(body)} bytes"


# -- The parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b"0," * MOST_VALUES + b"0]}",
        b'{"a":[' + b"[]," * MOST_CONTAINERS + b"0]}",
        b'{"a":[' + b"{}," * MOST_CONTAINERS + b"0]}",
        b"[" * (MOST_CONTAINERS + 1),
    ],
    ids=["values", "lists", "objects", "depth"],
)
def test_a_body_with_more_in_it_than_is_read_is_not_parsed(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="this server reads"):
            parse(body)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


def test_a_body_with_as_much_in_it_as_is_read_is_parsed() -> None:
    lists = b'{"a":[' + b"[]," * (MOST_CONTAINERS - 3) + b"[]]}"
    assert lists.count(b"[") + lists.count(b"{") == MOST_CONTAINERS
    assert len(parse(lists)["a"]) == MOST_CONTAINERS - 2  # type: ignore[arg-type]
    values = b'{"a":[' + b"0," * (MOST_VALUES - 2) + b"0]}"
    assert values.count(b",") + 2 == MOST_VALUES
    assert len(parse(values)["a"]) == MOST_VALUES - 1  # type: ignore[arg-type]


def test_commas_and_brackets_within_texts_are_no_values() -> None:
    text = '[{,"\\' * (MOST_CONTAINERS // 2)
    assert parse(json.dumps({"text": text, "n": 1}).encode()) == {"text": text, "n": 1}


@pytest.mark.parametrize("body", [b'"' + b'\\"[' * 150_000, b'{"a":"' + b"\\" * 200_001 + b"[" * 200_001])
def test_a_text_without_an_end_is_looked_at_once(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises(BadRequest):
        parse(body)
    assert time.process_time() - began < 1


def test_lists_of_objects_are_no_longer_than_they_may_be() -> None:
    [endpoint] = [one for one in ENDPOINTS if one.path == "/v1/chat/completions"]
    message = {"role": "user", "content": "a"}
    endpoint._understand(json.dumps({"messages": [message] * MOST_OBJECTS}).encode(), {})
    with pytest.raises(BadRequest, match=f"at most {MOST_OBJECTS}"):
        endpoint._understand(json.dumps({"messages": [message] * (MOST_OBJECTS + 1)}).encode(), {})


def test_what_is_wrong_in_a_long_object_is_told_all_the_same() -> None:
    [endpoint] = [one for one in ENDPOINTS if one.path == "/generate"]
    bias: dict[str, object] = {str(token): 1 for token in range(1000)}
    endpoint._understand(json.dumps({"sampling_params": {"logit_bias": bias}}).encode(), {})
    with pytest.raises(BadRequest, match="logit_bias"):
        endpoint._understand(json.dumps({"sampling_params": {"logit_bias": {**bias, "x": 1}}}).encode(), {})


def test_of_a_text_that_is_far_too_long_only_the_beginning_is_made_tokens_of() -> None:
    seen: list[int] = []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * (len(text) // 3)

    assert len(tokens_of(encode, "a" * 3000, 1000)) == 1000
    with pytest.raises(BadRequest, match="fewer than 1000"):
        tokens_of(encode, "a" * 10_000_000, 1000)
    assert sum(seen) < 30_000
    with pytest.raises(BadRequest):
        tokens_of(lambda text: [0], "a" * 10_000_000, 1000)  # however few: so long a text is not looked at
    assert tokens_of(lambda text: [*map(ord, text)], "abc" * 2000, 10_000) == [*map(ord, "abc" * 2000)]


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        "é\u2028",
        1.5,
        {"a": [*range(10_000)], "b": {"c": [[1, 2.5, None, "x"]] * 5000, "d": {}}, "e": []},
        [{"x": ["y" * 100] * 300}] * 300,
        {str(index): [index] for index in range(10_000)},
        [[[[index] * 3] * 3] * 3 for index in range(3000)],
        ["x" * 200_000, [], {}],
    ],
    ids=lambda one: str(one)[:20],
)
def test_an_answer_in_pieces_is_the_same_answer(document: object) -> None:
    found = [*pieces(document)]
    assert json.loads(b"".join(found)) == document
    assert max(map(len, found)) < 400_000
