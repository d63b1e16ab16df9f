"""Every field of every endpoint changes something that can be seen, or is documented to change nothing.

A field that is added needs a line here: a value, and what it stands beside. It is sent with and without, and what
is answered, or what the engine is asked to do, must differ.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from devicekit.server.app import ENDPOINTS
from devicekit.server.endpoints import Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.sampling import SamplingArguments
from devicekit.server.serving import Serving
from tests.server.conftest import Models, Serve, Server

Body = Mapping[str, object]
Case = tuple[Body, Body]  # what is sent anyway, and the field

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
STRICT = {**SCHEMA, "additionalProperties": False}
FEW = {str(token): 20 for token in range(40, 60)}  # tokens that come up again and again
TOOL = {"type": "function", "function": {"name": "look", "parameters": STRICT}}
PROMPT = "Pages of keys and values " * 8  # more than a page of the cache
MESSAGES = [{"role": "user", "content": PROMPT}]
HOT = {"temperature": 5.0}
TEMPLATE = (
    "<tool_call>{% for t in tools or [] %}{{ t | string }}{% endfor %}{% for m in messages %}{{ m | string }}"
    "{% endfor %}{{ add_generation_prompt }}{{ reasoning_effort }}{{ tone }}"
)

# Names that mean the same wherever they stand: what is sent beside them, and they themselves.
SAMPLING: dict[str, Case] = {
    "temperature": ({"seed": 1}, HOT),
    "top_p": ({"seed": 1, **HOT}, {"top_p": 0.01}),
    "top_k": ({"seed": 1, **HOT}, {"top_k": 1}),
    "min_p": ({"seed": 1, **HOT}, {"min_p": 1.0}),
    "stop": ({}, {"stop": list("abcdefghijklmnopqrstuvwxyz ")}),
    "stop_token_ids": ({}, {"stop_token_ids": [*range(3, 300)]}),
    "ignore_eos": ({"logit_bias": {"EOS": 100}}, {"ignore_eos": True}),
    "skip_special_tokens": (
        {"logit_bias": {"EOS": 100}, "ignore_eos": True},
        {"skip_special_tokens": False},
    ),
    "no_stop_trim": ({"stop": list("aeiou nrst")}, {"no_stop_trim": True}),
    "include_stop_str_in_output": ({"stop": list("aeiou nrst")}, {"include_stop_str_in_output": True}),
    "n": ({}, {"n": 2}),
    "seed": ({"seed": 1, **HOT}, {"seed": 2}),
    "min_tokens": ({"logit_bias": {"EOS": 100}}, {"min_tokens": 4}),
    "frequency_penalty": ({"logit_bias": {"5": 20, "6": 19}}, {"frequency_penalty": 2.0}),
    "presence_penalty": ({"logit_bias": FEW}, {"presence_penalty": 2.0}),
    "repetition_penalty": ({"logit_bias": FEW}, {"repetition_penalty": 100.0}),
    "logit_bias": ({}, {"logit_bias": {"5": 100}}),
    "max_tokens": ({}, {"max_tokens": 3}),
    "json_schema": ({}, {"json_schema": SCHEMA}),
    "regex": ({}, {"regex": "QQ"}),
    "ebnf": ({}, {"ebnf": 'root ::= "QQ"'}),
    "guided_json": ({}, {"guided_json": SCHEMA}),
    "guided_regex": ({}, {"guided_regex": "QQ"}),
    "guided_grammar": ({}, {"guided_grammar": 'root ::= "QQ"'}),
    "guided_choice": ({}, {"guided_choice": ["QQ"]}),
    "structured_outputs": ({}, {"structured_outputs": {"regex": "QQ"}}),
}
OPENAI: dict[str, Case] = {
    **SAMPLING,
    "stream": ({}, {"stream": True}),
    "stream_options": ({"stream": True}, {"stream_options": {"include_usage": True}}),
    "response_format": ({}, {"response_format": {"type": "json_object"}}),
    "rid": ({"return_meta_info": True}, {"rid": "mine"}),
    "request_id": ({"return_meta_info": True}, {"request_id": "mine"}),
    "priority": ({}, {"priority": 1}),
    "logprobs_mode": ({"logprobs": 1, "temperature": 3.0, "top_k": 1}, {"logprobs_mode": "raw"}),
    "return_token_ids": ({}, {"return_token_ids": True}),
    "return_meta_info": ({}, {"return_meta_info": True}),
    "extra_key": ({}, {"extra_key": "NEW"}),
    "cache_salt": ({}, {"cache_salt": "NEW"}),
}
CASES: dict[str, dict[str, Case]] = {
    "/generate": {
        "text": ({"text": "Pages"}, {"text": "Keys"}),
        "input_ids": ({"text": None, "input_ids": [5]}, {"input_ids": [6]}),
        "sampling_params": ({}, {"sampling_params": {"max_new_tokens": 2}}),
        "rid": ({}, {"rid": "mine"}),
        "return_logprob": ({}, {"return_logprob": True}),
        "top_logprobs_num": ({"return_logprob": True}, {"top_logprobs_num": 2}),
        "logprob_start_len": ({"return_logprob": True}, {"logprob_start_len": 0}),
        "token_ids_logprob": ({"return_logprob": True}, {"token_ids_logprob": [5]}),
        "logprobs_mode": (
            {
                "return_logprob": True,
                "sampling_params": {"temperature": 3.0, "top_k": 1, "max_new_tokens": 3},
            },
            {"logprobs_mode": "raw"},
        ),
        "return_text_in_logprobs": ({"return_logprob": True}, {"return_text_in_logprobs": True}),
        "stream": ({}, {"stream": True}),
        **{name: OPENAI[name] for name in ("priority", "extra_key", "cache_salt")},
    },
    "/v1/completions": {
        **OPENAI,
        "prompt": ({"prompt": "Pages"}, {"prompt": "Keys"}),
        "logprobs": ({}, {"logprobs": 2}),
        "echo": ({}, {"echo": True}),
        "best_of": ({}, {"best_of": 2}),
    },
    "/v1/chat/completions": {
        **{name: case for name, case in OPENAI.items() if name != "logprobs_mode"},
        "logprobs_mode": ({"logprobs": True, "temperature": 3.0, "top_k": 1}, {"logprobs_mode": "raw"}),
        "messages": ({}, {"messages": [{"role": "user", "content": "Keys"}]}),
        "input_ids": ({"return_token_ids": True}, {"input_ids": [5, 6]}),
        "max_completion_tokens": ({"max_tokens": 5}, {"max_completion_tokens": 3}),
        "logprobs": ({}, {"logprobs": True}),
        "top_logprobs": ({"logprobs": True}, {"top_logprobs": 2}),
        "tools": ({"return_token_ids": True}, {"tools": [TOOL]}),
        "tool_choice": ({"tools": [TOOL]}, {"tool_choice": "required"}),
        "parallel_tool_calls": (
            {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200, "logit_bias": {"COMMA": 100}},
            {"parallel_tool_calls": False},
        ),
        "chat_template_kwargs": ({"return_token_ids": True}, {"chat_template_kwargs": {"tone": "x"}}),
        "reasoning_effort": ({"return_token_ids": True}, {"reasoning_effort": "low"}),
        "add_generation_prompt": ({"return_token_ids": True}, {"add_generation_prompt": False}),
        "continue_final_message": ({"return_token_ids": True}, {"continue_final_message": True}),
    },
    "/tokenize": {
        "prompt": ({"prompt": "a"}, {"prompt": "b"}),
        "messages": ({"messages": MESSAGES}, {"messages": [{"role": "user", "content": "b"}]}),
        "tools": ({"messages": MESSAGES}, {"tools": [TOOL]}),
        "add_generation_prompt": ({"messages": MESSAGES}, {"add_generation_prompt": False}),
        "continue_final_message": ({"messages": MESSAGES}, {"continue_final_message": True}),
        "chat_template_kwargs": ({"messages": MESSAGES}, {"chat_template_kwargs": {"tone": "x"}}),
        "return_token_strs": ({"prompt": "a"}, {"return_token_strs": True}),
    },
    "/detokenize": {
        "tokens": ({"tokens": [5]}, {"tokens": [6]}),
        "skip_special_tokens": ({"tokens": ["EOS"]}, {"skip_special_tokens": False}),
    },
    "/v1/loads": {
        "dp_rank": ({}, {"dp_rank": 5}),
        "include": ({}, {"include": "core"}),
        "format": ({}, {"format": "prometheus"}),
    },
}
BASES: dict[str, Body] = {
    "/generate": {"text": PROMPT, "sampling_params": {"max_new_tokens": 12, "temperature": 0}},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 12, "temperature": 0},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 12, "temperature": 0},
}
UPDATE: dict[str, Case] = {
    "flush_cache": ({}, {"flush_cache": False}),
    "torch_empty_cache": ({}, {"torch_empty_cache": True}),
    "abort_all_requests": ({}, {"abort_all_requests": True}),
    "weight_version": ({}, {"weight_version": "v"}),
    "selector": ({}, {"selector": "target"}),
}
LEASE: dict[str, Case] = {"lease": ({}, {"lease": "l"})}
UPDATE_ID: dict[str, Case] = {"update_id": ({"update_id": "u"}, {"update_id": "v"})}
GROUP: dict[str, Case] = {"group_name": ({}, {"group_name": "g"})}
PEER = {"update_id": "u", "peer": "http://127.0.0.1:1"}
JOINING = {"master_address": "a", "master_port": 1, "rank_offset": 1, "world_size": 2}
BROADCAST = {"names": ["a"], "dtypes": ["float32"], "shapes": [[1]]}
NOTHING = base64.b64encode(b"00000000{}").decode()
# Of these the operation is looked at that the engine is asked for, and nothing is done.
OPERATIONS: dict[str, tuple[Body, dict[str, Case]]] = {
    "/flush_cache": ({}, {"timeout": ({}, {"timeout": 3}), "empty_cache": ({}, {"empty_cache": False})}),
    "/pause_generation": (
        {},
        {"mode": ({}, {"mode": "retract"}), "continue_after": ({}, {"continue_after": 3})},
    ),
    "/continue_generation": ({}, {"torch_empty_cache": ({}, {"torch_empty_cache": False})}),
    "/drain": ({}, {"timeout": ({}, {"timeout": 3})}),
    "/abort_request": (
        {"rid": "a"},
        {
            "rid": ({}, {"rid": "b"}),
            "exact": ({}, {"exact": True}),
            "abort_all": ({}, {"abort_all": True}),
        },
    ),
    "/update_weights_from_disk": (
        {"model_path": "A"},
        {
            **UPDATE,
            "model_path": ({}, {"model_path": "B"}),
            "load_format": ({}, {"load_format": "pt"}),
        },
    ),
    "/update_weights_from_tensor": (
        {"serialized_named_tensors": [NOTHING]},
        {
            **UPDATE,
            "serialized_named_tensors": ({}, {"serialized_named_tensors": ["!"]}),
            "load_format": ({}, {"load_format": "pt"}),
        },
    ),
    "/init_weights_update_group": (
        JOINING,
        {
            **GROUP,
            "master_address": ({}, {"master_address": "b"}),
            **{name: ({}, {name: 3}) for name in ("master_port", "rank_offset", "world_size", "timeout")},
            "backend": ({}, {"backend": "gloo"}),
        },
    ),
    "/destroy_weights_update_group": ({}, GROUP),
    "/update_weights_from_distributed": (
        BROADCAST,
        {
            **UPDATE,
            **GROUP,
            "names": ({}, {"names": ["b"]}),
            "dtypes": ({}, {"dtypes": ["int8"]}),
            "shapes": ({}, {"shapes": [[2]]}),
            "load_format": ({}, {"load_format": "flattened_bucket"}),
        },
    ),
    "/update_weights_from_ipc": (
        {"zmq_handles": {"cpu": "ipc://a"}},
        {
            **UPDATE,
            "zmq_handles": ({}, {"zmq_handles": {"cpu": "ipc://b"}}),
            "handles": ({}, {"handles": {"a": {}}}),
            "timeout": ({}, {"timeout": 3}),
        },
    ),
    "/claim_for_fleet": (
        {"fleet": "f"},
        {
            "fleet": ({}, {"fleet": "g"}),
            "steered_by": ({}, {"steered_by": "me"}),
            "take_over": ({}, {"take_over": True}),
            "holder": ({}, {"holder": "h"}),
            "again": ({}, {"again": True}),
        },
    ),
    "/end_fleet_claim": ({"lease": "a"}, LEASE),
    "/hold_for_fleet": (
        {},
        {**LEASE, "mode": ({}, {"mode": "in_place"}), "timeout": ({"mode": "finish"}, {"timeout": 3})},
    ),
    "/prepare_weight_update": (
        {"update_id": "u", "model_path": "A"},
        {
            **LEASE,
            **UPDATE_ID,
            "model_path": ({}, {"model_path": "B"}),
            "peer": ({**PEER, "model_path": None}, {"peer": "http://127.0.0.1:2"}),
            "weight_version": ({**PEER, "model_path": None}, {"weight_version": "v"}),
            "checksum": ({**PEER, "model_path": None}, {"checksum": "c"}),
            "patience": ({**PEER, "model_path": None}, {"patience": 3}),
            "selector": ({}, {"selector": "target"}),
        },
    ),
    "/commit_weight_update": ({"update_id": "u"}, {**LEASE, **UPDATE_ID, **UPDATE}),
    "/discard_weight_update": ({"update_id": "u"}, {**LEASE, **UPDATE_ID}),
    "/join_fleet": (
        {"weight_version": "v"},
        {
            **LEASE,
            "weight_version": ({}, {"weight_version": "w"}),
            "checksum": ({}, {"checksum": "c"}),
        },
    ),
    "/begin_weight_update": ({}, {"selector": ({}, {"selector": "target"})}),
    "/transaction": (
        {},
        {
            "settle": ({}, {"settle": "abort"}),
            "model_path": ({}, {"model_path": "B"}),
            "weight_version": ({"model_path": "A"}, {"weight_version": "v"}),
            "flush_cache": ({}, {"flush_cache": False}),
            "torch_empty_cache": ({}, {"torch_empty_cache": True}),
            "resume": ({}, {"resume": False}),
            "timeout": ({}, {"timeout": 3}),
        },
    ),
    "/get_weights_by_name": (
        {"name": "a"},
        {"name": ({}, {"name": "b"}), "truncate_size": ({}, {"truncate_size": 3})},
    ),
    "/weights_checker": ({}, {"selector": ({}, {"selector": "all"})}),
    "/update_weight_version": (
        {"new_version": "v"},
        {
            "new_version": ({}, {"new_version": "w"}),
            "abort_all_requests": ({}, {"abort_all_requests": False}),
        },
    ),
    "/release_memory_occupation": (
        {},
        {"tags": ({}, {"tags": ["kv_cache"]}), "backup_weights": ({}, {"backup_weights": True})},
    ),
    "/resume_memory_occupation": ({}, {"tags": ({}, {"tags": ["kv_cache"]})}),
}
# By what the documentation says of them.
WITHOUT_EFFECT = {
    "model": "any name is taken",
    # This tokenizer has nothing to do with them.
    "spaces_between_special_tokens": "the tokenizer",
    "add_special_tokens": "the tokenizer",
}
# The first: see tests/server/test_weight_sharing.py; the second has one value.
ELSEWHERE = {"/read_weights", "/weights_checker.action"}
NEVER_THE_SAME = frozenset({"id", "created", "e2e_latency", "timestamp"})


def fields(endpoint: Endpoint[Any]) -> Iterator[tuple[str, str]]:
    """Every field, by the path and the name."""
    for name, field in endpoint.arguments.model_fields.items():
        yield endpoint.path, field.alias or name
    if endpoint.path == "/generate":
        for name, field in SamplingArguments.model_fields.items():
            yield "/generate sampling_params", field.alias or name


FIELDS = [one for endpoint in ENDPOINTS for one in fields(endpoint)]


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[Server]:
    with serve(chat_template=TEMPLATE, allow_pickled_weights=True) as running:
        yield running


@pytest.mark.parametrize(("path", "name"), FIELDS, ids=[f"{path}-{name}" for path, name in FIELDS])
def test_a_field_is_honoured(
    server: Server, models: Models, path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in WITHOUT_EFFECT:
        described = {one: field.description for one, field in _model(path).model_fields.items()}
        assert WITHOUT_EFFECT[name] in (described[name] or "")
        return
    if path in ELSEWHERE or f"{path}.{name}" in ELSEWHERE:
        return
    if path in OPERATIONS:
        base, cases = OPERATIONS[path]
        beside, field = cases[name]
        told = _names(models)
        assert _asked(server, path, told({**base, **beside}), monkeypatch) != _asked(
            server, path, told({**base, **beside, **field}), monkeypatch
        )
        return
    beside, field = _case(path, name)
    path = path.partition(" ")[0]
    engine = server.serving.engine
    known = {"EOS": min(engine.runner.limits.eos_token_ids), "COMMA": engine.encode(",")[0]}
    base = {**BASES.get(path, {}), **beside}
    _answered(server, path, base, known)
    assert _answered(server, path, base, known) != _answered(server, path, {**base, **field}, known)


def _case(path: str, name: str) -> Case:
    """As `/generate` has it, its parameters in an object of their own."""
    if path != "/generate sampling_params":
        return CASES[path][name]
    beside, field = SAMPLING[OF_SGLANG.get(name, name)]
    params = {"max_new_tokens": 12, "temperature": 0, **_of_sglang(beside)}
    return {"sampling_params": params}, {"sampling_params": {**params, **_of_sglang(field)}}


OF_SGLANG = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}


def _of_sglang(given: Body) -> Body:
    names = {ours: theirs for theirs, ours in OF_SGLANG.items()}
    return {names.get(name, name): value for name, value in given.items()}


def _model(path: str) -> type[BaseModel]:
    if path == "/generate sampling_params":
        return SamplingArguments
    return next(one.arguments for one in ENDPOINTS if one.path == path.partition(" ")[0])


def _answered(server: Server, path: str, body: Body, tokens: Mapping[str, int]) -> object:
    """What can be seen of an answer, but for what is never the same."""
    text = json.dumps(body).replace("NEW", uuid.uuid4().hex)
    for name, token in tokens.items():
        text = text.replace(f'"{name}":', f'"{token}":').replace(f'"{name}"', str(token))
    [endpoint] = [one for one in ENDPOINTS if one.path == path]
    if endpoint.methods == ("GET",):
        answer = server.http.get(path, params=json.loads(text))
    else:
        answer = server.http.post(path, content=text, headers={"Content-Type": "application/json"})
    kind = answer.headers["Content-Type"]
    seen = answer.json() if kind == "application/json" else answer.text
    return answer.status_code, kind, _plain(seen, "rid" in body or "request_id" in body)


def _plain(value: object, named: bool) -> object:
    if isinstance(value, dict):
        hidden = NEVER_THE_SAME - ({"id"} if named else set())
        return {name: _plain(one, named) for name, one in value.items() if name not in hidden}
    return [_plain(one, named) for one in value] if isinstance(value, list) else value


def _names(models: Models) -> Any:
    def told(body: Body) -> Body:
        paths = {"A": str(models.a), "B": str(models.b)}
        return {name: paths.get(str(one), one) if name == "model_path" else one for name, one in body.items()}

    return told


def _asked(server: Server, path: str, body: Body, monkeypatch: pytest.MonkeyPatch) -> object:
    """The operation that an endpoint asks the engine for; or else why it does not."""
    seen: list[object] = []

    async def perform(self: Serving, operation: object, kind: type) -> object:
        seen.append(operation)
        raise BadRequest("seen")

    with monkeypatch.context() as patched:
        patched.setattr(Serving, "perform", perform)
        answer = server.post(path, body)
    if not seen:
        assert answer.status_code == 400, answer.text
        return answer.text
    # Their ids, and a new lease, are made up for each.
    return re.sub(r"operation \d+|lease='[0-9a-f]{32}'", "", repr(seen[0]))
