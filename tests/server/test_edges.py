"""Each field of each endpoint at, just inside and just outside of what it may be, as the schema says it.

What is made of the schema cannot forget a new field: nothing here names one, but for what keeps a request short.
`EDGES_SEED` (environment) chooses which of the requests are sent in a usual run; with `-m thorough` all are.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.text import shown
from devicekit.server.app import ENDPOINTS
from devicekit.server.endpoints import Endpoint
from devicekit.server.keys import Access
from tests.seeds import drawn_seed
from tests.server.conftest import Models, Serve, Server
from tests.server.edges import Place, Raw, body_of, places

SEED = drawn_seed("EDGES_SEED")
_SAMPLE = 25  # requests of each endpoint in a usual run
_READING = [one for one in ENDPOINTS if one.arguments.model_fields]
_JSON = {"Content-Type": "application/json"}
# What makes a request sound and short where the field that is tried is another one.
_BESIDE: dict[str, dict[str, object]] = {
    "/generate": {"text": "a"},
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/tokenize": {"prompt": "a"},
    "/init_weights_update_group": {"timeout": 0.1},
    "/update_weights_from_ipc": {"zmq_handles": {"cpu": "ipc://nowhere"}, "timeout": 0.1},
}
_TOKENS = 256  # that a sequence has at most: however many are asked for, it ends soon
_PATIENCE = 60.0  # seconds, on a busy machine


def _document(place: Place, value: object) -> dict[str, object]:
    document = place.put(value)
    if "text" in document and "sampling_params" not in place.names:
        document.setdefault("sampling_params", {"max_new_tokens": 2})
    params = document.get("sampling_params")
    for one in params if isinstance(params, list) else [params]:
        if isinstance(one, dict) and one:
            one.setdefault("max_new_tokens", 2)
    return document


def _cases(endpoint: Endpoint[Any]) -> Iterator[tuple[Place, object, str, bytes]]:
    for place in places(endpoint.arguments.model_json_schema(), _BESIDE.get(endpoint.path, {})):
        for value, broken in place.values():
            yield place, value, broken, body_of(_document(place, value))


def _numbers_none_reads(text: str) -> list[str]:
    """NaN and its like, which are no JSON."""
    found: list[str] = []
    json.loads(text, parse_constant=found.append)
    return found


def _numbers_there_are_none(value: object) -> bool:
    return isinstance(value, Raw) and value.text.strip("-") in ("NaN", "Infinity")


@pytest.mark.parametrize("endpoint", _READING, ids=lambda one: one.path)
def test_what_is_refused_is_refused_by_its_name_and_its_bound(endpoint: Endpoint[Any]) -> None:
    """Before anything is done: all values of all fields, without a server."""
    refused = 0
    for place, value, broken, body in _cases(endpoint):
        about = f"{place}: {shown(value)}"
        try:
            arguments, _ = endpoint._understand(body, {})
        except DeviceKitError as error:
            refused += 1
            said = str(error)
            assert place.names[-1] in said or place.names[0] in said, f"{about}: {said}"
            assert broken in said or "Field required" in said, f"{about}, against {broken}: {said}"
            assert len(said) < 2000, about
        else:
            assert not broken, f"{about} was taken, against {broken}"
            assert not _numbers_there_are_none(value), about
            if value is None:
                assert place.names[0] not in arguments.model_fields_set or len(place.names) > 1, about
    assert refused, "nothing that was sent is wrong"


@pytest.fixture(scope="module")
def small(serve: Serve) -> Iterator[Server]:
    with serve(kv_tokens=_TOKENS) as running:
        yield running


@contextlib.contextmanager
def _neighbour(server: Server) -> Iterator[None]:
    """Somebody who asks the same again and again meanwhile, and is answered the same."""
    body = {"text": "The sea", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    with httpx.Client(base_url=server.url, timeout=_PATIENCE, trust_env=False) as http:
        expected = http.post("/generate", json=body).json()["output_ids"]
        done, found = threading.Event(), [expected]

        def ask() -> None:
            while not done.wait(0.01):
                found.append(http.post("/generate", json=body).json().get("output_ids"))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield
        finally:
            done.set()
            asking.join()
    assert all(one == expected for one in found), "somebody else's answer changed"
    assert len(found) > 1


def _chosen(endpoint: Endpoint[Any], most: int | None) -> list[tuple[Place, object, bytes]]:
    """Of what can be understood all, or so many; and some of what cannot."""
    taken, refused = [], []
    for place, value, _, body in _cases(endpoint):
        try:
            endpoint._understand(body, {})
            taken.append((place, value, body))
        except DeviceKitError:
            refused.append((place, value, body))
    draw = random.Random(SEED ^ zlib.crc32(endpoint.path.encode()))
    chosen = taken if most is None else draw.sample(taken, min(most, len(taken)))
    return chosen + draw.sample(refused, min(len(chosen) // 4 + 1, len(refused)))


def _try(server: Server, models: Models, endpoint: Endpoint[Any], most: int | None) -> None:
    steers = endpoint.access is Access.CONTROL
    with contextlib.nullcontext() if steers else _neighbour(server):
        for place, value, body in _chosen(endpoint, most):
            about = f"{endpoint.path}, {place}: {shown(value)} (EDGES_SEED={SEED})"
            try:
                answer = server.http.request(
                    "POST" if "POST" in endpoint.methods else "GET",
                    endpoint.path,
                    content=body,
                    headers=_JSON,
                    timeout=_PATIENCE,
                )
            except httpx.TimeoutException:
                raise AssertionError(f"{about}: no answer") from None
            if steers:
                server.restore(models)
            said = answer.text
            assert answer.status_code < 500 or answer.status_code == 501, f"{about}: {said}"
            if answer.status_code in (400, 413, 422):
                message = answer.json()["error"]["message"]
                _names(endpoint, _document(place, value), message, about)
            elif answer.headers["Content-Type"] == "application/json":
                assert not _numbers_none_reads(said), f"{about}: {said}"


def _names(endpoint: Endpoint[Any], document: object, message: str, about: str) -> None:
    """A refusal names a field, or a value: that of the field that is tried, or of one that stands beside it."""
    said = message.lower().replace("_", " ")
    fields = {name for place in places(endpoint.arguments.model_json_schema(), {}) for name in place.names}
    values = {*_leaves(document), *(shown(one.default) for one in endpoint.arguments.model_fields.values())}
    named = any(name.replace("_", " ") in said for name in fields) or any(one in message for one in values)
    assert named, f"{about}: {message}"


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield repr(name)
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    else:
        yield shown(value)


@pytest.mark.parametrize("endpoint", _READING, ids=lambda one: one.path)
def test_no_value_of_a_field_is_a_fault_or_somebody_elses_trouble(
    small: Server, models: Models, endpoint: Endpoint[Any]
) -> None:
    print(f"EDGES_SEED={SEED}")
    _try(small, models, endpoint, _SAMPLE)
    assert small.get("/health_generate").json()["status"] == "ok"


@pytest.mark.thorough
@pytest.mark.parametrize("endpoint", _READING, ids=lambda one: one.path)
def test_no_value_of_any_field_is_a_fault(small: Server, models: Models, endpoint: Endpoint[Any]) -> None:
    _try(small, models, endpoint, None)
    assert small.get("/health_generate").json()["status"] == "ok"


@pytest.mark.parametrize(
    "endpoint", [one for one in _READING if "GET" in one.methods], ids=lambda one: one.path
)
def test_no_value_in_a_query_is_a_fault(small: Server, models: Models, endpoint: Endpoint[Any]) -> None:
    odd = (
        "",
        "0",
        "-1",
        "7",
        str(2**63),
        "1" * 5000,
        "1e308",
        "nan",
        "inf",
        "true",
        "%00",
        "%F0%9F%98%80",
        "%ED%A0%80",
    )
    for name in endpoint.arguments.model_fields:
        for value in odd:
            if name == "timeout" and value in (str(2**63), "1e308"):
                continue  # sound, and nobody waits for it
            answer = small.http.get(f"{endpoint.path}?{name}={value}&unknown={value}")
            small.restore(models)
            assert answer.status_code < 500, (name, value, answer.text)
            if answer.status_code == 400:
                message = answer.json()["error"]["message"]
                about = f"{endpoint.path}?{name}={value}"
                _names(endpoint, {name: httpx.QueryParams(f"a={value}")["a"]}, message, about)


def test_what_is_taken_at_a_bound_is_honoured(small: Server) -> None:
    def completion(**more: object) -> list[dict[str, Any]]:
        body = {"prompt": "a", "max_tokens": 1, "temperature": 0, "ignore_eos": True, **more}
        answer = small.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        choices: list[dict[str, Any]] = answer.json()["choices"]
        return choices

    for count in (1, 2, 127, 128):
        assert len(completion(n=count)) == count
    for most in (0, 1, 2):
        assert len(completion(max_tokens=most, return_token_ids=True)[0]["token_ids"]) == most
    for most in (2**31, 2**63, 10**400):  # more than there is room for: as many as there is
        prompt, made = 1, completion(max_tokens=most, return_token_ids=True)[0]["token_ids"]
        assert _TOKENS - 2 <= prompt + len(made) <= _TOKENS + 1
    for tops in (0, 1, 20):
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "logprobs": True}
        answer = small.post("/v1/chat/completions", {**chat, "top_logprobs": tops}).json()
        assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == tops
    said = completion(max_tokens=8)[0]["text"]
    [stopped] = completion(max_tokens=8, stop=[*(f"{said}{number}" for number in range(255)), said[:1]])
    assert (stopped["text"], stopped["finish_reason"]) == ("", "stop"), "the last of as many as there may be"


def test_a_grammar_or_a_bound_is_called_what_the_client_called_it(small: Server) -> None:
    for name, value in (
        ("guided_grammar", "7"),
        ("guided_json", "7"),
        ("guided_regex", "("),
        ("json_schema", "{"),
        ("structured_outputs", {"grammar": "7"}),
        ("structured_outputs", {"regex": "("}),
    ):
        inner = ".".join([name, *value]) if isinstance(value, dict) else name
        refused = small.post("/v1/completions", {"prompt": "a", name: value})
        assert refused.status_code == 400
        assert f"{inner} " in refused.json()["error"]["message"], refused.text
    chat = {"messages": [{"role": "user", "content": "a"}]}
    for name in ("max_tokens", "max_completion_tokens"):
        message = small.post("/v1/chat/completions", {**chat, name: -1}).json()["error"]["message"]
        assert message == f"This request cannot be served: {name} must be 0 or more, not -1."
