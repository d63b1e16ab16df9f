"""litellm, as a proxy's client."""

import json
import os

import litellm

COMMON = {
    "model": "openai/small",
    "api_base": os.environ["BASE_URL"] + "/v1",
    "api_key": "-",
    "temperature": 0,
    "max_tokens": 16,
}
MESSAGES = [{"role": "user", "content": "Pages"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]


def completion():
    done = litellm.text_completion(prompt="Pages", **{**COMMON, "model": "text-completion-openai/small"})
    assert isinstance(done.choices[0].text, str)


def chat():
    whole = litellm.completion(messages=MESSAGES, **COMMON).choices[0].message.content
    stream = litellm.completion(messages=MESSAGES, stream=True, **COMMON)
    assert "".join(one.choices[0].delta.content or "" for one in stream) == whole


def structured():
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    options = {**COMMON, "temperature": 1, "max_tokens": 200}
    done = litellm.completion(messages=MESSAGES, response_format=wanted, **options)
    assert json.loads(done.choices[0].message.content)["a"] in ("x", "y")


def tools():
    options = {**COMMON, "temperature": 1, "max_tokens": 400}
    done = litellm.completion(messages=MESSAGES, tools=TOOLS, tool_choice="required", **options)
    assert done.choices[0].message.tool_calls[0].function.name == "look"


def errors():
    try:
        litellm.completion(messages=MESSAGES, **{**COMMON, "temperature": -1})
    except litellm.BadRequestError as error:
        told = str(error)
    else:
        told = "it was served"
    assert "temperature" in told, told


for check in (completion, chat, structured, tools, errors):
    try:
        check()
        wrong = ""
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
    print(json.dumps({"check": check.__name__.replace("_", " "), "wrong": wrong}), flush=True)
