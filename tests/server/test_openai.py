"""The official OpenAI client works against the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from examples.checkpoints import write_example_checkpoint
from tests.server.conftest import Serve, Server

PARAMS = {"model": "a", "temperature": 0, "max_tokens": 12}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Pages"}]},
]


@pytest.fixture(scope="module")
def client(shared: Server) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="-", max_retries=0, http_client=http) as found:
        yield found


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["a"]


def test_a_completion_is_what_generate_gives(client: openai.OpenAI, shared: Server) -> None:
    done = client.completions.create(prompt="Pages of keys", **PARAMS)
    expected = shared.generate("Pages of keys", max_new_tokens=12)
    assert done.choices[0].text == expected["text"]
    assert done.choices[0].finish_reason == expected["meta_info"]["finish_reason"]["type"]
    assert done.usage.prompt_tokens == expected["meta_info"]["prompt_tokens"]
    assert done.usage.total_tokens == done.usage.prompt_tokens + len(expected["output_ids"])


def test_completions_of_several_prompts_come_in_order(client: openai.OpenAI) -> None:
    prompts = ["Pages of keys", "Weights change"]
    alone = [client.completions.create(prompt=one, **PARAMS).choices[0].text for one in prompts]
    done = client.completions.create(prompt=prompts, n=2, **PARAMS)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in done.choices] == [alone[0]] * 2 + [alone[1]] * 2
    assert done.usage.completion_tokens <= 48


def test_a_completion_can_be_asked_for_in_token_ids(client: openai.OpenAI, shared: Server) -> None:
    ids = shared.serving.engine.encode("Pages of keys")
    text = client.completions.create(prompt="Pages of keys", **PARAMS).choices[0].text
    assert client.completions.create(prompt=ids, **PARAMS).choices[0].text == text
    both = client.completions.create(prompt=[ids, ids], **PARAMS)
    assert [choice.text for choice in both.choices] == [text, text]


def test_a_streamed_completion_adds_up(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="Pages of keys", **PARAMS)
    stream = client.completions.create(
        prompt="Pages of keys", stream=True, stream_options={"include_usage": True}, **PARAMS
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completion_logprobs(client: openai.OpenAI) -> None:
    found = client.completions.create(prompt="Pages of keys", logprobs=2, **PARAMS).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert all(value <= 0 for value in found.token_logprobs)


def test_a_chat_uses_the_models_template(client: openai.OpenAI, shared: Server) -> None:
    done = client.chat.completions.create(messages=MESSAGES, **PARAMS)
    expected = shared.generate("<system>Be brief.<user>Pages<assistant>", max_new_tokens=12)
    assert done.choices[0].message.content == expected["text"]
    assert done.choices[0].message.role == "assistant"
    assert done.usage.prompt_tokens == expected["meta_info"]["prompt_tokens"]


def test_a_streamed_chat_adds_up(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, n=2, **PARAMS)
    chunks = list(client.chat.completions.create(messages=MESSAGES, n=2, stream=True, **PARAMS))
    for index, choice in enumerate(whole.choices):
        mine = [one.choices[0] for one in chunks if one.choices and one.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]


def test_chat_logprobs(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **PARAMS)
    content = done.choices[0].logprobs.content
    assert len(content) == done.usage.completion_tokens
    assert {len(one.top_logprobs) for one in content} == {3}
    assert bytes(content[0].bytes).decode() == content[0].token


def test_penalties_biases_and_minimum_lengths_are_honoured(client: openai.OpenAI, shared: Server) -> None:
    wishes = {"frequency_penalty": 0.5, "presence_penalty": 1.0, "logit_bias": {"0": 100, "11": 5}}
    more = {"min_tokens": 5, "repetition_penalty": 1.25}
    done = client.completions.create(prompt="Pages of keys", extra_body=more, **wishes, **PARAMS)
    same = {**wishes, "min_new_tokens": 5, "repetition_penalty": 1.25, "max_new_tokens": 12}
    assert done.choices[0].text == shared.generate("Pages of keys", **same)["text"]
    assert (done.usage.completion_tokens, done.choices[0].finish_reason) == (6, "stop")
    chat = client.chat.completions.create(messages=MESSAGES, extra_body=more, **wishes, **PARAMS)
    assert chat.usage.completion_tokens == 6


def test_a_chat_without_a_limit_goes_on_to_its_end(serve: Serve, tmp_path: Path) -> None:
    model = write_example_checkpoint(tmp_path / "short", seed=1)
    with serve(model, kv_tokens=2048, chat_template="{{ messages[0].content }}") as server:
        document = {
            "temperature": 0,
            "messages": [{"role": "user", "content": "x" * 490}],
            "ignore_eos": True,
        }
        answer = server.post("/v1/chat/completions", document)
        assert answer.json()["usage"]["total_tokens"] == 512


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": -1},
        {"top_p": 0},
        {"presence_penalty": 3},
        {"logit_bias": {"9999": 1}},
        {"extra_body": {"min_tokens": 99}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "odd"}}}},
        {"tool_choice": "required"},
        {"extra_body": {"lora_path": "x"}},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
def test_what_cannot_be_served_is_a_bad_request(client: openai.OpenAI, more: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(**{"messages": MESSAGES, **PARAMS, **more})
    assert found.value.body["message"]


def test_a_model_without_a_template_says_what_to_do(serve: Serve, tmp_path: Path) -> None:
    model = write_example_checkpoint(tmp_path / "plain", seed=1)
    with serve(model) as server:
        answer = server.post("/v1/chat/completions", {"messages": MESSAGES})
        assert answer.status_code == 400
        assert "--chat-template" in answer.json()["error"]["message"]
    with serve(model, chat_template="{{ messages[1].content }}") as server:
        answer = server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2})
        assert answer.json()["usage"]["prompt_tokens"] == len(server.serving.engine.encode("Pages"))


def test_a_model_without_a_tokenizer_takes_token_ids_only(serve: Serve, tmp_path: Path) -> None:
    model = write_example_checkpoint(tmp_path / "silent", seed=1)
    (model / "tokenizer.json").unlink()
    with serve(model) as server:
        answer = server.generate([3, 4])
        assert "text" not in answer
        assert len(answer["output_ids"]) > 0
        assert server.get("/health_generate").status_code == 200
        for path, document in (("/generate", {"text": "a"}), ("/v1/completions", {"prompt": "a"})):
            refused = server.post(path, document)
            assert refused.status_code == 400
            assert "tokenizer" in refused.json()["error"]["message"]


def test_keys_travel_as_the_client_sends_them(serve: Serve) -> None:
    with serve(api_key="secret") as server:
        http = httpx.Client(trust_env=False)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", http_client=http) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
            client.api_key = "secret"
            assert client.models.list().data[0].id == "a"
