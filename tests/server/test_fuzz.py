"""Whatever is sent, the answer is an answer, and the engine lives."""

from __future__ import annotations

import math
import types
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from devicekit.server.app import ENDPOINTS
from devicekit.server.endpoints import Endpoint
from tests.server.conftest import Models, Server

_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(-1, 500), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.just([[1, 2], [3]]),
    st.just({}),
    st.dictionaries(st.sampled_from(["0", "7", "-1", "9999", "x", "²"]), st.floats(-200, 200), max_size=3),
)
_NAMES = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "stop_token_ids",
    "n",
    "sampling_seed",
    "ignore_eos",
    "no_stop_trim",
    "min_new_tokens",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
]
_SAMPLING = st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=1)
# A sound request of each kind. What could hold up the test for longer than it takes is always kept short.
_SOUND: dict[str, object] = {
    "text": "a",
    "sampling_params": {"max_new_tokens": 2},
    "prompt": "a",
    "messages": [{"role": "user", "content": "a"}],
    "max_tokens": 2,
    "rid": "r",
}
_SHORT = {
    "sampling_params": _SAMPLING.map(lambda given: {**given, "max_new_tokens": 2}),
    "max_tokens": st.integers(-1, 3),
    "max_completion_tokens": st.integers(-1, 3),
}
_SHARED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
_BODIES = [one for one in ENDPOINTS if not one.in_query]
_QUERIES = [one for one in ENDPOINTS if one.in_query and one.arguments.model_fields]


def _documents(endpoint: Endpoint) -> st.SearchStrategy[dict[str, object]]:
    """Sound requests with one or two fields that are anything."""
    names = [*endpoint.arguments.model_fields]
    sound = {name: value for name, value in _SOUND.items() if name in names}
    wild = st.sampled_from([*names, "unheard of"]).flatmap(
        lambda name: _SHORT.get(name, _VALUES).map(lambda value: {name: value})
    )
    return st.lists(wild, min_size=1, max_size=2).map(
        lambda changes: {**sound, **{name: value for change in changes for name, value in change.items()}}
    )


@pytest.mark.parametrize("endpoint", _BODIES, ids=lambda one: one.path)
def test_no_body_is_a_fault_of_the_server(shared: Server, models: Models, endpoint: Endpoint) -> None:
    @_SHARED
    @given(_documents(endpoint))
    def check(document: dict[str, object]) -> None:
        answer = shared.post(endpoint.path, document)
        assert answer.status_code < 500, (document, answer.text)
        shared.restore(models)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"], document

    check()
    assert shared.get("/health_generate").status_code == 200


# -- Of the right kind, and as odd as that kind allows ----------------------------------------------------------

_ASKED = [one for one in _BODIES if one.tag == "generation" or one.path.endswith("tokenize")]
_INTEGERS = st.integers(-2, 400) | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30])
_NUMBERS = st.floats(-3, 3) | st.sampled_from([5e-324, 1e308, -1e308, 0.0])
_TEXTS = st.text(max_size=4) | st.sampled_from(
    ["a|", "[a-z]+", "\0", "{}", '{"type": "string"}', 'root ::= "a"']
)
_KINDS: dict[object, st.SearchStrategy[object]] = {
    int: _INTEGERS,
    float: _NUMBERS,
    bool: st.booleans(),
    str: _TEXTS,
    object: _VALUES,
    type(None): st.none(),
}
_KEPT = {"max_tokens", "max_completion_tokens", "max_new_tokens", "n", "best_of", "stream"}


def _of_kind(kind: object) -> st.SearchStrategy[object]:
    """Values that have the form of a type. Whether they make sense is another matter."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _of_kind(parts[0])
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(_of_kind, parts))
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is list:
        return st.lists(_of_kind(parts[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(
            st.sampled_from(["0", "7", "383", "384", "type", "x"]), _of_kind(parts[1]), max_size=2
        )
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _of_model(kind)
    return _KINDS[kind]


def _of_model(model: type[BaseModel]) -> st.SearchStrategy[object]:
    """All that it needs, and one or two fields more."""
    fields = {field.alias or name: field for name, field in model.model_fields.items() if name not in _KEPT}
    needed = {name: _of_kind(field.annotation) for name, field in fields.items() if field.is_required()}
    rest = sorted(fields.keys() - needed.keys())
    if not rest:
        return st.fixed_dictionaries(needed)
    chosen = st.lists(st.sampled_from(rest), min_size=1, max_size=2, unique=True)
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries(
            {**needed, **{name: _of_kind(fields[name].annotation) for name in names}}
        )
    )


@pytest.mark.parametrize("endpoint", _ASKED, ids=lambda one: one.path)
def test_nothing_that_has_the_right_form_is_a_fault_of_the_server(shared: Server, endpoint: Endpoint) -> None:
    names = [*endpoint.arguments.model_fields]
    sound = {
        name: value for name, value in _SOUND.items() if name in names and name not in ("text", "prompt")
    }

    @settings(_SHARED, max_examples=30)
    @given(_of_model(endpoint.arguments))
    def check(document: dict[str, object]) -> None:
        document = {**sound, **document}
        if isinstance(params := document.get("sampling_params"), dict):
            document["sampling_params"] = {**params, "max_new_tokens": 2}
        elif isinstance(params, list):
            document["sampling_params"] = [{**one, "max_new_tokens": 2} for one in params]
        answer = shared.post(endpoint.path, document)
        assert answer.status_code < 500, (document, answer.text)

    check()
    assert shared.get("/health_generate").status_code == 200


@pytest.mark.parametrize("endpoint", _QUERIES, ids=lambda one: one.path)
def test_no_query_is_a_fault_of_the_server(shared: Server, endpoint: Endpoint) -> None:
    values = st.one_of(st.text(max_size=8), st.sampled_from(["nan", "1e999", "true", "-0", str(math.pi)]))

    @_SHARED
    @given(st.dictionaries(st.sampled_from([*endpoint.arguments.model_fields, "x"]), values))
    def check(query: dict[str, str]) -> None:
        query = {**query, **({"timeout": "soon"} if query.get("timeout", "0")[:1].isdigit() else {})}
        answer = shared.get(endpoint.path, **query)
        assert answer.status_code < 500, (query, answer.text)

    check()
