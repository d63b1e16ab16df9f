"""OpenAI's Python client."""

import json
import os

import openai

client = openai.OpenAI(base_url=os.environ["BASE_URL"] + "/v1", api_key="-", max_retries=0)
MESSAGES = [{"role": "user", "content": "Pages"}]
COMMON = {"model": "small", "temperature": 0, "max_tokens": 16}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]


def models():
    assert [one.id for one in client.models.list()] == ["small"]
    if "GATEWAY" not in os.environ:  # they have the list alone
        assert client.models.retrieve("small").id == "small"


def completion():
    whole = client.completions.create(prompt="Pages", **COMMON).choices[0].text
    stream = client.completions.create(prompt="Pages", stream=True, **COMMON)
    assert "".join(one.choices[0].text for one in stream if one.choices) == whole


def chat():
    whole = client.chat.completions.create(messages=MESSAGES, **COMMON).choices[0].message.content
    stream = client.chat.completions.create(messages=MESSAGES, stream=True, **COMMON)
    assert "".join(one.choices[0].delta.content or "" for one in stream if one.choices) == whole


def log_probabilities():
    done = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **COMMON)
    assert all(len(one.top_logprobs) == 3 for one in done.choices[0].logprobs.content)
    echoed = client.completions.create(prompt="Pages", echo=True, logprobs=1, **{**COMMON, "max_tokens": 0})
    assert echoed.choices[0].text == "Pages"


def structured():
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    options = {**COMMON, "temperature": 1, "max_tokens": 200}
    done = client.chat.completions.create(messages=MESSAGES, response_format=wanted, **options)
    assert json.loads(done.choices[0].message.content)["a"] in ("x", "y")


def tools():
    options = {**COMMON, "temperature": 1, "max_tokens": 400}
    done = client.chat.completions.create(messages=MESSAGES, tools=TOOLS, tool_choice="required", **options)
    assert done.choices[0].message.tool_calls[0].function.name == "look"


def errors():
    try:
        client.completions.create(prompt="Pages", **{**COMMON, "temperature": -1})
    except openai.BadRequestError as error:
        told = error.message
    else:
        told = "it was served"
    assert "temperature" in told, told


for check in (models, completion, chat, log_probabilities, structured, tools, errors):
    try:
        check()
        wrong = ""
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
    print(json.dumps({"check": check.__name__.replace("_", " "), "wrong": wrong}), flush=True)
