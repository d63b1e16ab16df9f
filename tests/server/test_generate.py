"""`/generate`: the tokens of the engine itself, in every form that clients ask for."""

from __future__ import annotations

import itertools
import json
import socket

import pytest

from devicekit.engine import Engine, EngineConfig
from tests.server.conftest import LONG, Models, Serve, Server, events


@pytest.fixture(scope="module")
def expected(models: Models) -> dict[str, object]:
    engine = Engine.open(models.a, "cpu", config=EngineConfig())
    prompts = ["Pages of keys", "Weights change"]
    tokens = {prompt: engine.encode(prompt) for prompt in prompts}
    done = engine.generate(prompts, max_new_tokens=12, temperature=0, ignore_eos=True)
    return {one: (tokens[one], result.tokens, result.text) for one, result in zip(prompts, done, strict=True)}


GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}


def test_text_gives_the_engines_own_tokens_and_text(shared: Server, expected: dict[str, tuple]) -> None:
    ids, tokens, text = expected["Pages of keys"]
    answer = shared.generate("Pages of keys", **GREEDY)
    assert (answer["output_ids"], answer["text"]) == (tokens, text)
    meta = answer["meta_info"]
    assert meta["prompt_tokens"] == len(ids)
    assert meta["completion_tokens"] == 12
    assert meta["finish_reason"] == {"type": "length", "length": 12}
    assert meta["weight_version"] == "default"


@pytest.mark.parametrize(
    "more",
    [{}, {"return_logprob": True}, {"sampling_params": {"regex": "[0-9]+"}}, {"sampling_params": {"n": 2}}],
    ids=["alone", "log-probabilities", "grammar", "several"],
)
def test_no_tokens_wanted_is_a_prompt_computed_and_cached(
    shared: Server, more: dict[str, dict[str, object]]
) -> None:
    prompt = "A prompt that others are to begin with, " * 8 + str(sorted(more))
    params = {"temperature": 0, "max_new_tokens": 0}
    asked = {"text": prompt, **more, "sampling_params": {**params, **more.get("sampling_params", {})}}
    for again in (False, True):
        found = shared.post("/generate", asked).json()
        for one in found if isinstance(found, list) else [found]:
            assert (one["text"], one["output_ids"]) == ("", [])
            assert one["meta_info"]["finish_reason"]["type"] == "length"
            assert one["meta_info"]["completion_tokens"] == 0
            assert again <= (one["meta_info"]["cached_tokens"] > 0)
    streamed = shared.post("/generate", {**asked, "stream": True}).text.split("\n\n")
    assert "[DONE]" in streamed[-2]
    followed = shared.post(
        "/generate", {"text": prompt + " and more", "sampling_params": {"max_new_tokens": 1}}
    )
    assert followed.json()["meta_info"]["cached_tokens"] > 0


def test_token_ids_give_the_same_as_text(shared: Server, expected: dict[str, tuple]) -> None:
    ids, tokens, _ = expected["Pages of keys"]
    assert shared.generate(ids, **GREEDY)["output_ids"] == tokens


@pytest.mark.parametrize("key", ["text", "input_ids"])
def test_a_batch_is_answered_in_order(shared: Server, expected: dict[str, tuple], key: str) -> None:
    prompts = [prompt if key == "text" else ids for prompt, (ids, _, _) in expected.items()]
    answer = shared.post("/generate", {key: prompts, "sampling_params": [GREEDY, GREEDY]}).json()
    assert [one["output_ids"] for one in answer] == [tokens for _, tokens, _ in expected.values()]


def test_a_stream_adds_up_to_the_whole(shared: Server, expected: dict[str, tuple]) -> None:
    ids, tokens, text = expected["Weights change"]
    with shared.streaming({"input_ids": ids, "sampling_params": GREEDY, "rid": "mine"}) as stream:
        chunks = list(stream)
    lengths = [len(chunk["output_ids"]) for chunk in chunks]
    assert lengths == sorted(lengths)
    assert len(lengths) > 3
    assert all(text.startswith(chunk["text"]) for chunk in chunks)
    assert (chunks[-1]["output_ids"], chunks[-1]["text"]) == (tokens, text)
    assert {chunk["meta_info"]["id"] for chunk in chunks} == {"mine"}
    assert [chunk["meta_info"]["finish_reason"] for chunk in chunks][:-1] == [None] * (len(chunks) - 1)


def test_a_streamed_batch_says_which_prompt_each_event_is_for(
    shared: Server, expected: dict[str, tuple]
) -> None:
    with shared.streaming({"text": list(expected), "sampling_params": GREEDY}) as stream:
        last = {chunk["index"]: chunk["output_ids"] for chunk in stream}
    assert last == dict(enumerate(tokens for _, tokens, _ in expected.values()))


def test_n_sequences_differ_and_have_ids_of_their_own(shared: Server) -> None:
    params = {"n": 3, "max_new_tokens": 12, "temperature": 1.5, "sampling_seed": 7}
    answer = shared.post("/generate", {"text": "The sea", "sampling_params": params, "rid": "r"}).json()
    assert [one["meta_info"]["id"] for one in answer] == ["r_0", "r_1", "r_2"]
    assert len({tuple(one["output_ids"]) for one in answer}) == 3
    again = shared.post("/generate", {"text": "The sea", "sampling_params": params}).json()
    assert [one["output_ids"] for one in again] == [one["output_ids"] for one in answer]


def test_the_prompt_of_n_sequences_is_computed_once(shared: Server) -> None:
    params = {"n": 3, "max_new_tokens": 4}
    document = {"input_ids": list(range(300, 340)), "sampling_params": params}
    answer = shared.post("/generate", document).json()
    assert [one["meta_info"]["cached_tokens"] for one in answer] == [0, 32, 32]


def test_top_k_of_minus_one_is_no_limit(shared: Server) -> None:
    free = shared.generate(temperature=1.2, sampling_seed=3, top_k=-1)
    assert free["output_ids"] == shared.generate(temperature=1.2, sampling_seed=3)["output_ids"]
    greedy = shared.generate(temperature=0)["output_ids"]
    assert shared.generate(temperature=1.2, sampling_seed=3, top_k=1)["output_ids"] == greedy
    assert free["output_ids"] != greedy


def test_logprobs_come_one_per_token_with_as_many_alternatives_as_asked_for(shared: Server) -> None:
    document = {"text": "The sea", "sampling_params": GREEDY, "return_logprob": True, "top_logprobs_num": 2}
    meta = shared.post("/generate", {**document, "return_text_in_logprobs": True}).json()["meta_info"]
    tokens = shared.generate("The sea", **GREEDY)["output_ids"]
    assert [token for _, token, _ in meta["output_token_logprobs"]] == tokens
    assert all(value <= 0 and isinstance(text, str) for value, _, text in meta["output_token_logprobs"])
    assert [len(one) for one in meta["output_top_logprobs"]] == [2] * 12
    assert [one[0][1] for one in meta["output_top_logprobs"]] == tokens  # greedy: the best is the chosen one


def test_a_stop_string_ends_the_output_and_is_cut_unless_asked_for(
    shared: Server, expected: dict[str, tuple]
) -> None:
    text = expected["Pages of keys"][2]
    stop = text[4:6]
    cut = shared.generate("Pages of keys", **GREEDY, stop=[stop])
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert cut["text"] == text[: text.index(stop)]
    kept = shared.generate("Pages of keys", **GREEDY, stop=stop, no_stop_trim=True)
    assert kept["text"].startswith(cut["text"] + stop)


def test_a_stop_token_ends_the_output(shared: Server, expected: dict[str, tuple]) -> None:
    tokens = expected["Pages of keys"][1]
    answer = shared.generate("Pages of keys", **GREEDY, stop_token_ids=[tokens[2]])
    assert answer["output_ids"] == tokens[: tokens.index(tokens[2]) + 1]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": tokens[2]}


KEYS = [None, "", "a", "b", "ab", '["a", "b"]', "a\0"]


def test_prefixes_are_shared_by_those_only_who_send_the_same_key_and_the_same_salt(shared: Server) -> None:
    shared.post("/flush_cache")
    prompt = [*range(40, 80)]
    seen: set[tuple[str | None, ...]] = set()
    for key, salt in itertools.product(KEYS, KEYS):
        fields = {"extra_key": key, "cache_salt": salt}
        # One by itself is a key, whichever it is called; an empty one is none.
        owner = (key, salt) if key and salt else (key or salt or None,)
        params = {"max_new_tokens": 1, "temperature": 0}
        answer = shared.post("/generate", {"input_ids": prompt, "sampling_params": params, **fields}).json()
        assert bool(answer["meta_info"]["cached_tokens"]) == (owner in seen), fields
        seen.add(owner)
        done = shared.post("/v1/completions", {"prompt": prompt, "max_tokens": 1, **fields}).json()
        assert done["usage"]["prompt_tokens_details"]["cached_tokens"], fields


def test_a_second_prompt_with_the_same_beginning_finds_it_cached(shared: Server) -> None:
    ids = list(range(2, 50))
    shared.generate(ids)
    assert shared.generate(ids)["meta_info"]["cached_tokens"] == 32


REFUSED = {
    "nothing to complete": ({}, "text or input_ids"),
    "both": ({"text": "a", "input_ids": [1]}, "text or input_ids"),
    "an empty batch": ({"text": []}, "empty"),
    "an empty prompt": ({"input_ids": []}, "empty"),
    "a foreign token": ({"input_ids": [99999]}, "vocabulary"),
    "an enormous token": ({"input_ids": [10**30]}, ""),
    "too long a prompt": ({"input_ids": [1] * 65_536}, "65536"),
    "fewer than no tokens wanted": (
        {"text": "a", "sampling_params": {"max_new_tokens": -1}},
        "max_new_tokens",
    ),
    "a wrong type": ({"text": "a", "sampling_params": {"top_p": "much"}}, "top_p"),
    "a temperature below 0": ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
    "too high a penalty": ({"text": "a", "sampling_params": {"frequency_penalty": 3}}, "frequency_penalty"),
    "a bias for no token": ({"text": "a", "sampling_params": {"logit_bias": {"x": 1}}}, "logit_bias"),
    "a bias for a foreign token": (
        {"text": "a", "sampling_params": {"logit_bias": {"9999": 1}}},
        "vocabulary",
    ),
    "too strong a bias": ({"text": "a", "sampling_params": {"logit_bias": {"1": -101}}}, "-100 to 100"),
    "a minimum above the maximum": (
        {"text": "a", "sampling_params": {"min_new_tokens": 999}},
        "min_new_tokens",
    ),
    "an unsound grammar": ({"text": "a", "sampling_params": {"regex": "(a"}}, "regex"),
    "two grammars": ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "start: A"}}, "regex, ebnf"),
    "an image": ({"text": "a", "image_data": "…"}, "image_data"),
    "prompt logprobs of no token": (
        {"input_ids": [5], "return_logprob": True, "logprob_start_len": 1},
        "prompt token 1",
    ),
    "lists of different lengths": ({"text": ["a", "b"], "rid": ["1"]}, "rid"),
    "one id twice": ({"text": ["a", "b"], "rid": ["1", "1"]}, "already"),
    "a seed beyond 64 bits": ({"text": "a", "sampling_params": {"sampling_seed": 2**64}}, "sampling_seed"),
    "a way to stop that is not known": ({"text": "a", "sampling_params": {"stop_regex": "a"}}, "stop_regex"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_with_its_reason(shared: Server, name: str) -> None:
    document, reason = REFUSED[name]
    answer = shared.post("/generate", document)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    assert shared.load()["num_total_reqs"] == 0


RAW = {
    "no json": b"{",
    "no object": b"[1]",
    "not a number": b'{"text": "a", "sampling_params": {"temperature": NaN}}',
    "infinite": b'{"text": "a", "sampling_params": {"temperature": 1e999}}',
    "half a surrogate pair": b'{"text": "a", "rid": "\\ud800"}',
    "not unicode": b'{"text": "\xff"}',
    "too deep": b'{"text":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", RAW)
def test_a_body_that_is_no_good_json_is_refused(shared: Server, name: str) -> None:
    answer = shared.http.post("/generate", content=RAW[name])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert shared.get("/health_generate").status_code == 200


def test_penalties_biases_and_minimum_lengths_change_the_output_as_asked(shared: Server) -> None:
    params = {"max_new_tokens": 20, "temperature": 0}
    plain = shared.generate("The sea", **params)["output_ids"]
    banned = {str(token): -100 for token in plain[:2]}
    assert not {*plain[:2]} & {*shared.generate("The sea", **params, logit_bias=banned)["output_ids"]}
    varied = shared.generate("The sea", **params, frequency_penalty=2, presence_penalty=2, ignore_eos=True)
    assert len({*varied["output_ids"]}) == 20  # this model's logits are closer together than these penalties
    early = {"logit_bias": {"0": 100}}  # the end of every text
    assert len(shared.generate("The sea", **params, **early)["output_ids"]) == 1
    late = shared.generate("The sea", **params, **early, min_new_tokens=7)
    assert len(late["output_ids"]) == 8
    assert late["meta_info"]["finish_reason"] == {"type": "stop", "matched": 0}


def test_unknown_keys_and_neutral_values_are_let_pass(shared: Server, expected: dict[str, tuple]) -> None:
    neutral = {"frequency_penalty": 0.0, "repetition_penalty": 1.0, "spaces_between_special_tokens": False}
    document = {"text": "Pages of keys", "sampling_params": {**GREEDY, **neutral}, "log_metrics": True}
    answer = shared.post("/generate?unknown=1", document).json()
    assert answer["output_ids"] == expected["Pages of keys"][1]


def test_an_id_is_free_again_only_when_its_request_has_ended(shared: Server) -> None:
    with shared.running(rid="taken"):
        again = shared.post("/generate", {"text": "a", "rid": "taken"})
        assert again.status_code == 400
        assert "taken" in again.json()["error"]["message"]
    shared.eventually(lambda: shared.load()["num_total_reqs"] == 0)
    assert shared.post("/generate", {"text": "a", "rid": "taken"}).status_code == 200


def test_a_client_that_leaves_its_stream_ends_its_request(shared: Server) -> None:
    with shared.running():
        assert shared.load()["num_running_reqs"] == 1
    shared.eventually(lambda: shared.load()["num_total_reqs"] == 0)
    assert b'devicekit_requests_total{finish="abort"}' in shared.get("/metrics").content


def test_a_client_that_gives_up_waiting_ends_its_requests(serve: Serve) -> None:
    with serve() as server:
        body = json.dumps({"text": ["a", "b"], "sampling_params": LONG}).encode()
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address) as impatient:
            lines = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            impatient.sendall(lines + body)
            server.eventually(lambda: server.load()["num_running_reqs"] == 2)
        server.eventually(lambda: server.load()["num_total_reqs"] == 0)
        assert server.serving.loop.in_flight == 0
        assert 'devicekit_requests_total{finish="abort"} 2.0' in server.get("/metrics").text


def test_a_stream_that_cannot_begin_is_an_error_and_no_stream(shared: Server) -> None:
    answer = shared.post("/generate", {"input_ids": [99999], "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_stream_is_announced_as_one(shared: Server) -> None:
    document = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 2}}
    with shared.http.stream("POST", "/generate", json=document) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert len(list(events(answer))) >= 1


@pytest.mark.parametrize(
    ("document", "places"),
    [
        ({"text": "a", "sampling_params": {"logit_bias": {"x": 1}}}, ["sampling_params.logit_bias.x"]),
        (
            {"text": "a", "sampling_params": {"temperature": "hot", "logit_bias": {"x": 1}}},
            ["sampling_params.temperature", "sampling_params.logit_bias.x"],
        ),
        ({"text": ["a"], "sampling_params": [{"temperature": "hot"}]}, ["sampling_params.0.temperature"]),
    ],
)
def test_a_refused_argument_is_named_as_the_client_wrote_it(
    shared: Server, document: dict[str, object], places: list[str]
) -> None:
    answer = shared.http.post("/generate", json=document)
    assert answer.status_code == 400
    said = answer.json()["error"]["message"].split("; ")
    assert [one.partition(": ")[0] for one in said] == places
