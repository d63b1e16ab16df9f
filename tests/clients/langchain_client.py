"""langchain-openai."""

import json
import os

from langchain_openai import ChatOpenAI, OpenAI

BASE = {"base_url": os.environ["BASE_URL"] + "/v1", "api_key": "-", "model": "small", "temperature": 0}
SCHEMA = {
    "title": "answer",
    "description": "an answer",
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}


def completion():
    assert isinstance(OpenAI(max_tokens=16, **BASE).invoke("Pages"), str)


def chat():
    model = ChatOpenAI(max_tokens=16, **BASE)
    whole = model.invoke("Pages").content
    assert "".join(one.content for one in model.stream("Pages")) == whole


def structured():
    model = ChatOpenAI(max_tokens=200, **{**BASE, "temperature": 1})
    found = model.with_structured_output(SCHEMA, method="json_schema").invoke("Pages")
    assert found["a"] in ("x", "y")


def tools():
    model = ChatOpenAI(max_tokens=400, **{**BASE, "temperature": 1})
    bound = model.bind_tools([SCHEMA], tool_choice="answer")
    assert bound.invoke("Pages").tool_calls[0]["name"] == "answer"


for check in (completion, chat, structured, tools):
    try:
        check()
        wrong = ""
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
    print(json.dumps({"check": check.__name__.replace("_", " "), "wrong": wrong}), flush=True)
