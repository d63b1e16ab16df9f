"""Every field of every endpoint is honoured or refused by its name, and null is the same as nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
import types
import typing
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from devicekit.server.app import ENDPOINTS
from devicekit.server.endpoints import Endpoint
from devicekit.server.fields import NEUTRAL, REFUSED, asks_for_something, meanings
from devicekit.server.sampling import SamplingArguments
from tests.server.conftest import Serve, Server

MESSAGES = [{"role": "user", "content": "Pages"}]
GENERATING = {
    "/generate": {"text": "Pages"},
    "/v1/completions": {"prompt": "Pages"},
    "/v1/chat/completions": {"messages": MESSAGES},
}


SAMPLING = {"sampling_params": SamplingArguments}


def brief(path: str) -> dict[str, object]:
    """What makes an output one token long."""
    return {"sampling_params": {"max_new_tokens": 1}} if path == "/generate" else {"max_tokens": 1}


def models(kind: object) -> Iterator[type[BaseModel]]:
    """The models in a type, nested ones too."""
    if isinstance(kind, type) and issubclass(kind, BaseModel) and not isinstance(kind, types.GenericAlias):
        yield kind
        for field in kind.model_fields.values():
            yield from models(field.annotation)
    for part in typing.get_args(kind):
        yield from models(part)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.path)
def test_an_optional_field_may_be_null(endpoint: Endpoint) -> None:
    for model in {*models(endpoint.arguments)}:
        required = {
            field.alias or name: _example(field.annotation)
            for name, field in model.model_fields.items()
            if field.is_required()
        }
        optional = {
            field.alias or name: None for name, field in model.model_fields.items() if not field.is_required()
        }
        plain = model.model_validate(required)
        assert model.model_validate({**required, **optional}) == plain


# What clients send who write out every setting of another engine: with these values it changes nothing.
_DEFAULTS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("length_penalty", "typical_p", "tfs", "beam_width", "num_beams", "n", "best_of"), (1,)),
    **dict.fromkeys(("top_p", "repetition_penalty"), (1.0,)),
    **dict.fromkeys(("top_a", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "mirostat"), (0,)),
    **dict.fromkeys(("mirostat_mode", "dry_multiplier", "xtc_probability", "smoothing_factor"), (0,)),
    **dict.fromkeys(("dynatemp_range", "min_p", "min_tokens", "min_new_tokens"), (0,)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "top_logprobs", "top_logprobs_num"), (0,)),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens", "add_special_tokens"), (True,)),
    **dict.fromkeys(("add_generation_prompt", "parallel_tool_calls"), (True,)),
    "top_k": (-1, 0),
    "logprob_start_len": (-1,),
    "modalities": (["text"],),
    "function_call": ("none",),
    "guided_decoding_backend": ("auto",),
    "verbosity": ("medium",),
    "sampling_logprobs_mode": ("selected",),
    "logprobs_mode": ("sampled",),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ("none", "auto"),
}


@pytest.mark.parametrize(("name", "values"), _DEFAULTS.items(), ids=_DEFAULTS)
def test_a_default_of_others_that_is_written_out_asks_for_nothing(
    name: str, values: tuple[object, ...]
) -> None:
    assert name in REFUSED or name in meanings({one.path: one.arguments for one in ENDPOINTS} | SAMPLING)
    for nothing in (*values, None, False, "", [], {}):
        assert not asks_for_something(name, nothing)
    for value in values:
        others = (value + 2, value + 3, value + 0.5) if isinstance(value, (int, float)) else ("other",)
        assert all(asks_for_something(name, one) for one in others if type(value) is not bool)


def test_every_default_of_others_is_known_here() -> None:
    assert dict(NEUTRAL) == _DEFAULTS
    assert asks_for_something("input_embeds", 0)
    assert asks_for_something("input_embeds", [0])


def test_a_field_means_something_on_generating_endpoints_alone(shared: Server) -> None:
    lost = {"messages": MESSAGES}
    refused = shared.post("/generate", {"text": "a", **lost})
    assert refused.status_code == 400
    assert "messages (a field of /v1/chat/completions)" in refused.json()["error"]["message"]
    answer = shared.post("/weights_checker", lost)
    assert (answer.status_code, answer.headers["x-devicekit-ignored"]) == (200, "messages"), answer.text
    wrong = shared.post("/generate", {"text": "a", "sampling_params": {"stop": 7}}).json()["error"]["message"]
    assert {part.partition(":")[0] for part in wrong.split("; ")} == {"sampling_params.stop"}
    assert meanings({"there": SamplingArguments})["top_p"] == "there"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.path)
def test_a_truth_value_is_no_number(endpoint: Endpoint) -> None:
    for model in {*models(endpoint.arguments)}:
        required = {
            field.alias or name: _example(field.annotation)
            for name, field in model.model_fields.items()
            if field.is_required()
        }
        for name, field in model.model_fields.items():
            for shape in (lambda value: value, lambda value: [value], lambda value: {"0": value}):
                given = {**required, field.alias or name: shape(True)}
                with contextlib.suppress(ValidationError):
                    found = getattr(model.model_validate(given), name)
                    inner = next(iter(found.values())) if isinstance(found, dict) and found else found
                    inner = inner[0] if isinstance(inner, list) and inner else inner
                    assert inner is True or isinstance(inner, BaseModel), (model, name, found)


def _example(kind: object) -> object:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and not isinstance(kind, types.GenericAlias):
        return {
            name: _example(one.annotation) for name, one in kind.model_fields.items() if one.is_required()
        }
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return parts[0]
    if origin is list:
        return [_example(parts[0])]
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return _example(parts[0])
    return {str: "a", int: 1, float: 1.0, bool: True}.get(kind, {})


@pytest.mark.parametrize("path", GENERATING)
def test_what_would_change_the_answer_is_refused_by_its_name(shared: Server, path: str) -> None:
    values = itertools.cycle(("x", 0.5, {"a": 1}, ["a"]))
    for name, value in zip(sorted(REFUSED), values, strict=False):
        answer = shared.post(path, {**GENERATING[path], **brief(path), name: value})
        assert answer.status_code == 400, (name, value)
        assert name in answer.json()["error"]["message"]
    for empty in (None, False, [], {}, ""):
        nothing = dict.fromkeys(REFUSED, empty)
        answer = shared.post(path, {**GENERATING[path], **brief(path), **nothing})
        assert answer.status_code == 200, (empty, answer.text)
    neutral = {name: value for name, (value, *_) in NEUTRAL.items()}
    answer = shared.post(path, {**GENERATING[path], **brief(path), **neutral})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", GENERATING)
def test_a_field_of_another_endpoint_is_honoured_or_refused_and_never_passed_over(
    shared: Server, path: str
) -> None:
    """Whatever the model says, a field that another endpoint knows is not among the ignored ones."""
    models = {one.path: one.arguments for one in ENDPOINTS if one.path in GENERATING}
    models["sampling_params"] = SamplingArguments
    found = meanings(models)
    assert {"temperature", "max_tokens", "n", "stop", "logprobs", "echo", "text", "seed"} <= found.keys()
    for name in sorted(found.keys() - models[path].model_fields.keys()):
        answer = shared.post(path, {**GENERATING[path], **brief(path), name: 7})
        assert answer.status_code == 400, name
        assert f"{name} (a field of" in answer.json()["error"]["message"]
    if path == "/generate":
        for name in sorted(found.keys() - SamplingArguments.model_fields.keys()):
            params = {"max_new_tokens": 1, name: 7}
            for given in (params, [params]):
                answer = shared.post(path, {"text": ["a"], "sampling_params": given})
                assert answer.status_code == 400, name


def test_it_is_refused_wherever_it_stands_and_anything_else_is_named(shared: Server) -> None:
    document = {"text": "Pages", "sampling_params": {"stop_regex": "a", "max_new_tokens": 1}}
    answer = shared.post("/generate", document)
    assert answer.status_code == 400
    assert "sampling_params.stop_regex" in answer.json()["error"]["message"]
    harmless = {"text": "Pages", "user": "u", "sampling_params": {"max_new_tokens": 1, "wish": 3}}
    answer = shared.post("/generate", harmless)
    assert answer.status_code == 200
    assert set(answer.headers["X-Devicekit-Ignored"].split(", ")) == {"user", "sampling_params.wish"}


@pytest.mark.parametrize(
    "endpoint",
    [one for one in ENDPOINTS if not one.in_query and "POST" in one.methods],
    ids=lambda one: one.path,
)
def test_what_belongs_in_the_body_is_not_passed_over_in_the_query(shared: Server, endpoint: Endpoint) -> None:
    for name in endpoint.arguments.model_fields:
        answer = shared.post(f"{endpoint.path}?{name.rstrip('_')}=1&cache=none", {})
        assert answer.status_code == 400, answer.text
        assert f"{name.rstrip('_')} belongs in the body here" in answer.text
    if not endpoint.arguments.model_fields:
        assert shared.post(f"{endpoint.path}?cache=none", {}).status_code < 500


@pytest.mark.parametrize("path", GENERATING)
def test_explicit_nulls_and_an_empty_stop_mean_nothing(shared: Server, path: str) -> None:
    [endpoint] = [one for one in ENDPOINTS if one.path == path]
    names = [name for name, field in endpoint.arguments.model_fields.items() if not field.is_required()]
    nulls = {name: None for name in names if name not in GENERATING[path]}
    wishes = {"temperature": 0, "max_tokens": 6}
    if path == "/generate":
        wishes = {
            "sampling_params": {"temperature": 0, "max_new_tokens": 6, "stop": "", "stop_token_ids": None}
        }
    plain = shared.post(path, {**GENERATING[path], **wishes})
    given = shared.post(
        path, {**nulls, **GENERATING[path], **wishes, **({} if path == "/generate" else {"stop": ""})}
    )
    assert (plain.status_code, given.status_code) == (200, 200), given.text
    text = [str(one.json().get("text") or one.json()["choices"]) for one in (plain, given)]
    assert text[0] == text[1]


def test_what_is_out_of_range_is_named_as_the_client_wrote_it(shared: Server) -> None:
    ranges = {
        "/v1/completions": {
            "max_tokens": -1,
            "min_tokens": 99,
            "logprobs": 9999,
            "temperature": -1,
            "top_p": 2,
        },
        "/v1/chat/completions": {
            "max_tokens": -1,
            "min_tokens": 10**9,
            "temperature": -1,
            "stop_token_ids": [-1],
        },
        "/generate": {"top_logprobs_num": 9999, "token_ids_logprob": [-1], "return_logprob": True},
        "sampling_params": {
            "max_new_tokens": -1,
            "min_new_tokens": 10**6,
            "min_p": -1,
            "presence_penalty": 9,
        },
    }
    for path, fields in ranges.items():
        for name, value in fields.items():
            if value is True:
                continue
            given: dict[str, object] = {name: value}
            if path == "/generate":
                given["return_logprob"] = True
            document = (
                {"text": "a", path: given} if path == "sampling_params" else {**GENERATING[path], **given}
            )
            answer = shared.post(path if path in GENERATING else "/generate", document)
            assert answer.status_code == 400, (path, name)
            said = answer.json()["error"]["message"].removeprefix("This request cannot be served: ")
            words = {one.split(" ")[0] for one in said.split("; ")}
            assert name in words, (path, said)
            foreign = {"max_new_tokens", "min_new_tokens", "logprob_ids"} - {name}
            assert path == "sampling_params" or not foreign & {*said.replace(",", "").split()}, said


# -- Identity and the model -----------------------------------------------------------------------------------


def test_a_request_keeps_its_name(shared: Server) -> None:
    for path, document in GENERATING.items():
        answer = shared.post(path, {**document, **brief(path)}, headers={"X-Request-Id": "mine-7"})
        assert answer.headers["X-Request-Id"] == "mine-7"
    assert shared.get("/nowhere").headers["X-Request-Id"]
    first, second = (shared.get("/v1/models").headers["X-Request-Id"] for _ in range(2))
    assert first != second


def test_a_model_is_found_by_its_name(shared: Server) -> None:
    [model] = shared.get("/v1/models").json()["data"]
    assert shared.get(f"/v1/models/{model['id']}").json() == model
    missing = shared.get("/v1/models/other/one")
    assert missing.status_code == 404
    assert "other/one" in missing.json()["error"]["message"]


def test_the_longest_sequence_is_what_the_pool_can_hold(serve: Serve) -> None:
    with serve(kv_tokens=256) as server:
        [model] = server.get("/v1/models").json()["data"]
        assert model["max_model_len"] == 256
        chat = {"messages": MESSAGES, "temperature": 0, "ignore_eos": True}
        assert server.post("/v1/chat/completions", chat).json()["usage"]["total_tokens"] <= 257


def test_texts_become_tokens_and_tokens_texts(shared: Server) -> None:
    encode = shared.serving.engine.encode
    found = shared.post("/tokenize", {"prompt": "Pages of keys", "return_token_strs": True}).json()
    assert found["tokens"] == encode("Pages of keys")
    assert found["count"] == len(found["tokens"])
    assert "".join(found["token_strs"]) == "Pages of keys"
    many = shared.post("/v1/tokenize", {"prompt": ["a", "bc"]}).json()
    assert many["tokens"] == [encode("a"), encode("bc")]
    chat = shared.post("/tokenize", {"messages": MESSAGES}).json()
    assert chat["tokens"] == encode("<user>Pages<assistant>")
    assert shared.post("/detokenize", {"tokens": found["tokens"]}).json()["text"] == "Pages of keys"
    assert shared.post("/v1/detokenize", {"tokens": many["tokens"]}).json()["text"] == ["a", "bc"]
    assert shared.post("/tokenize", {}).status_code == 400
    known = shared.serving.engine.runner.limits.vocab_size
    for strange in (known, 2**32, 2**64, 10**30):
        for tokens in ([1, strange], [[1], [strange]]):
            refused = shared.post("/detokenize", {"tokens": tokens})
            assert refused.status_code == 400, tokens
            assert str(strange) in refused.json()["error"]["message"]


# -- Log-probabilities on the wire ----------------------------------------------------------------------------


def test_prompts_are_scored_over_http(shared: Server) -> None:
    ids = shared.serving.engine.encode("Pages of keys and values")
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 2,
        "top_logprobs_num": 3,
        "token_ids_logprob": [5, 6],
        "return_text_in_logprobs": True,
    }
    answer = shared.post("/generate", body).json()
    meta = answer["meta_info"]
    assert (answer["text"], answer["output_ids"], meta["finish_reason"]["type"]) == ("", [], "length")
    assert [token for _, token, _ in meta["input_token_logprobs"]] == ids[2:]
    assert meta["input_token_logprobs"][0][0] is None
    assert all(value <= 0 for value, _, _ in meta["input_token_logprobs"][1:])
    assert [one and len(one) for one in meta["input_top_logprobs"]] == [None] + [3] * (len(ids) - 3)
    assert [one and [token for _, token, _ in one] for one in meta["input_token_ids_logprobs"]] == [None] + [
        [5, 6]
    ] * (len(ids) - 3)
    assert meta["output_token_logprobs"] == meta["output_top_logprobs"] == []
    assert meta["logprobs_of"] == "sampled"


def test_an_echo_has_the_prompt_and_its_log_probabilities(shared: Server) -> None:
    ids = shared.serving.engine.encode("Pages of keys")
    for prompt in ("Pages of keys", ids):
        for most in (0, 3):
            body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": most, "temperature": 0}
            done = shared.post("/v1/completions", body).json()["choices"][0]
            found = done["logprobs"]
            assert done["text"].startswith("Pages of keys")
            assert len(found["tokens"]) == len(ids) + most == len(found["text_offset"])
            assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
            assert found["text_offset"] == sorted(found["text_offset"])
            assert found["text_offset"][-1] <= len(done["text"])
            for at, name in enumerate(found["tokens"][1:], 1):
                assert found["top_logprobs"][at][name] == found["token_logprobs"][at]
    plain = {"prompt": "Pages of keys", "echo": True, "max_tokens": 0}
    assert shared.post("/v1/completions", plain).json()["choices"][0]["text"] == "Pages of keys"


def test_top_log_probabilities_have_distinct_names_and_the_sampled_one(shared: Server) -> None:
    body = {
        "prompt": "Pages",
        "logprobs": 20,
        "max_tokens": 24,
        "temperature": 1.5,
        "seed": 3,
        "ignore_eos": True,
    }
    done = shared.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    assert [len(one) for one in done["top_logprobs"]] == [20] * 24
    assert all(name in top for name, top in zip(done["tokens"], done["top_logprobs"], strict=True))
    body = {
        "messages": MESSAGES,
        "logprobs": True,
        "top_logprobs": 5,
        "max_tokens": 24,
        "temperature": 1.5,
        "seed": 3,
    }
    chat = shared.post("/v1/chat/completions", body).json()["choices"][0]
    for one in chat["logprobs"]["content"]:
        assert one["token"] in [top["token"] for top in one["top_logprobs"]]
        assert len(one["top_logprobs"]) == 5
    content = b"".join(bytes(one["bytes"]) for one in chat["logprobs"]["content"])
    assert content.decode(errors="replace").startswith(
        chat["message"]["content"].rstrip("\N{REPLACEMENT CHARACTER}")
    )


@pytest.mark.parametrize("path", GENERATING)
def test_the_distribution_is_a_setting_of_server_and_request(serve: Serve, path: str) -> None:
    with serve(logprobs_mode="raw") as server:

        def ask(**more: object) -> tuple[str, float]:
            wishes = {"temperature": 0.5, "max_tokens": 1, "logit_bias": {"7": 20}, "logprobs": 1}
            if path == "/generate":
                wishes["max_new_tokens"] = wishes.pop("max_tokens")
                del wishes["logprobs"]
                meta = server.post(
                    path, {**GENERATING[path], "sampling_params": wishes, "return_logprob": True, **more}
                ).json()["meta_info"]
                return meta["logprobs_of"], meta["output_token_logprobs"][0][0]
            if "chat" in path:
                wishes["logprobs"] = True
            found = server.post(path, {**GENERATING[path], **wishes, **more}).json()["choices"][0]["logprobs"]
            values = found.get("token_logprobs") or [one["logprob"] for one in found["content"]]
            return found["distribution"], values[0]

        name, raw = ask()
        other, sampled = ask(logprobs_mode="sampled")
        assert (name, other) == ("raw", "sampled")
        assert math.isclose(sampled, 0, abs_tol=1e-3)
        assert raw < -0.5


def test_who_never_started_has_empty_lists_in_the_shape_of_full_ones(serve: Serve) -> None:
    with serve(max_running=1) as server, server.running():
        body = {
            "text": "Pages",
            "rid": "late",
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
            "token_ids_logprob": [3],
        }
        with server.streaming(body) as stream:
            server.post("/abort_request", {"rid": "late", "exact": True})
            *_, last = stream
        meta = last["meta_info"]
        assert meta["finish_reason"]["type"] == "abort"
        names = [
            f"{side}_{kind}_logprobs"
            for side in ("input", "output")
            for kind in ("token", "top", "token_ids")
        ]
        assert [meta[name] for name in names] == [[]] * 6


def test_token_ids_and_meta_info_come_when_asked_for(shared: Server) -> None:
    encode = shared.serving.engine.encode
    wishes = {
        "return_token_ids": True,
        "return_meta_info": True,
        "max_tokens": 5,
        "temperature": 0,
        "rid": "named",
    }
    [choice] = shared.post("/v1/completions", {"prompt": "Pages", **wishes}).json()["choices"]
    assert choice["prompt_token_ids"] == encode("Pages")
    assert choice["token_ids"] == shared.generate("Pages", max_new_tokens=5)["output_ids"]
    assert choice["meta_info"]["id"] == "named"
    chat = shared.post("/v1/chat/completions", {"messages": MESSAGES, **wishes}).json()
    assert chat["prompt_token_ids"] == encode("<user>Pages<assistant>")
    assert len(chat["choices"][0]["token_ids"]) == chat["usage"]["completion_tokens"]


def test_recommended_parameters_hold_where_nothing_is_said(
    serve: Serve, models: object, tmp_path: object
) -> None:
    model = shutil.copytree(models.a, tmp_path / "m")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 1e-6, "top_k": 1}))
    body = {"prompt": "Pages", "max_tokens": 16}
    with serve(model) as server:
        right = server.generate("Pages", max_new_tokens=16)["text"]
        for _ in range(3):
            assert server.post("/v1/completions", body).json()["choices"][0]["text"] == right
    with serve(model, sampling_defaults="openai") as server:
        texts = {server.post("/v1/completions", body).json()["choices"][0]["text"] for _ in range(3)}
        assert len(texts) > 1


def test_an_operation_that_fails_says_so_in_the_fields_that_trainers_read(shared: Server) -> None:
    for path, document in (
        ("/update_weights_from_disk", {"model_path": "/nowhere/at/all"}),
        ("/update_weights_from_disk", {}),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["!"]}),
        ("/pause_generation", {"mode": "odd"}),
    ):
        answer = shared.post(path, document)
        assert answer.status_code == 400
        assert answer.json()["success"] is False
        assert answer.json()["message"] == answer.json()["error"]["message"] != ""


def test_without_weights_requests_are_answered_with_a_reason(serve: Serve) -> None:
    with serve() as server:
        server.post("/release_memory_occupation")
        for path, document in GENERATING.items():
            answer = server.post(path, {**document, **brief(path)})
            assert answer.status_code == 503
            assert answer.json()["error"]["message"].startswith("Nothing can be generated now")
