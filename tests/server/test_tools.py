"""Tools reach the template, calls are read out of what a model says, and a model can be made to call one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import openai
import pytest
from transformers import AutoTokenizer

from devicekit.server.tool_grammar import CLOSE, OPEN, tagged
from devicekit.server.tools import Tool, ToolReader, ToolUse
from devicekit.text import GrammarCompiler, GrammarMatcher, GrammarRefused
from examples.checkpoints import write_example_checkpoint
from tests.server.conftest import Serve, Server

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "…",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "time")
]
USE = ToolUse(tuple(map(Tool.model_validate, TOOLS)))
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
SAID = {
    "hermes": f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>",
    "two of them": f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>",
    "text behind": f"a<tool_call>{CALL}</tool_call>b",
    "mistral": f"[TOOL_CALLS][{CALL}, {CALL}]",
    "llama": '{"name": "time", "parameters": {"city": "Oslo"}}',
    "python tag": '<|python_tag|>{"name": "time", "parameters": {}}',
    "never closed": f"<tool_call>{CALL}",
    "a function within": '[{"type": "function", "function": {"name": "time", "arguments": "{}"}}]',
    "none": "Just text, with { and <tool and [TOOL in it",
    "no such tool": '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
    "no json": "<tool_call>{nonsense}</tool_call> and on",
    "json that is no call": '{"answer": 42}',
}
CALLS = {
    "hermes": ("Let me see.\n", 1),
    "two of them": ("", 2),
    "text behind": ("ab", 1),
    "mistral": ("", 2),
    "llama": ("", 1),
    "python tag": ("", 1),
    "never closed": ("", 1),
    "a function within": ("", 1),
}


def read(text: str, pieces: list[str]) -> tuple[str, list[dict[str, object]]]:
    reader, content = ToolReader(USE), ""
    for piece in pieces:
        content += reader.feed(piece)[0]
    content += reader.end()[0]
    return content, [call.document()["function"] for call in reader.calls]


@pytest.mark.parametrize("name", SAID)
def test_calls_are_read_however_the_text_is_cut(name: str) -> None:
    text = SAID[name]
    whole = read(text, [text])
    content, count = CALLS.get(name, (text, 0))
    assert (whole[0], len(whole[1])) == (content, count)
    for call in whole[1]:
        assert call["name"] in ("weather", "time")
        assert isinstance(json.loads(call["arguments"]), dict)
    rng = random.Random(name)
    for _ in range(10):
        rest, pieces = text, []
        while rest:
            size = rng.randint(1, 6)
            pieces.append(rest[:size])
            rest = rest[size:]
        assert read(text, pieces) == whole


def test_text_that_is_no_call_is_not_held_back() -> None:
    reader = ToolReader(USE)
    assert reader.feed("Hello")[0] == "Hello"
    assert reader.feed(" <to")[0] == " "
    assert reader.feed("ast")[0] == "<toast"


TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}{{ m.name or '' }}{{ m.reasoning_content or '' }}>"
    "{{ m.content }}{{ m.tool_call_id or '' }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }}:{{ c.function.arguments.city }}){% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}{{ reasoning_effort or '' }}"
)


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    model = write_example_checkpoint(tmp_path_factory.mktemp("tools") / "m", seed=1)
    with serve(model, kv_tokens=4096, chat_template=TEMPLATE) as running:
        yield running


def prompt_of(server: Server, **document: object) -> str:
    body = {"max_tokens": 1, "temperature": 0, "return_token_ids": True, **document}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    return server.post("/detokenize", {"tokens": answer.json()["prompt_token_ids"]}).json()["text"]


def test_tools_and_everything_in_a_message_reach_the_template(server: Server) -> None:
    messages = [
        {"role": "user", "content": "Hi", "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "!",
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    ]
    text = prompt_of(server, messages=messages, tools=TOOLS, reasoning_effort="low")
    assert text == "[weather][time]<userAnn>Hi<assistant!>(weather:Rome)<tool>sunny1<assistant>low"
    assert (
        prompt_of(server, messages=messages[:1], tools=TOOLS, tool_choice="none") == "<userAnn>Hi<assistant>"
    )
    assert prompt_of(server, messages=messages[:1], add_generation_prompt=False) == "<userAnn>Hi"
    assert prompt_of(server, input_ids=server.serving.engine.encode("as it is")) == "as it is"


def test_a_final_message_is_continued(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The sea"}]
    assert prompt_of(server, messages=messages, continue_final_message=True) == "<user>Hi<assistant>The sea"
    both = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    assert server.post("/v1/chat/completions", both).status_code == 400


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_can_be_made_to_call(server: Server, choice: object, stream: bool) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        done = client.chat.completions.create(
            model="m",
            messages=messages,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            temperature=1.0,
            max_tokens=400,
            stream=stream,
        )
        if stream:
            chunks = [one.choices[0] for one in done if one.choices]
            calls = [call for one in chunks for call in one.delta.tool_calls or ()]
            reason = chunks[-1].finish_reason
            assert not any(one.delta.content for one in chunks)
        else:
            calls, reason = done.choices[0].message.tool_calls, done.choices[0].finish_reason
            assert done.choices[0].message.content is None
    assert reason == "tool_calls"
    assert len(calls) == 1
    assert calls[0].function.name in (("weather", "time") if choice == "required" else ("time",))
    assert json.loads(calls[0].function.arguments)["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}},
        {"tools": [{"type": "magic"}]},
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
        {"functions": [{"name": "f"}]},
    ],
)
def test_tools_that_make_no_sense_are_refused(server: Server, fields: dict[str, object]) -> None:
    document = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    assert server.post("/v1/chat/completions", document).status_code == 400


def test_a_call_is_read_from_what_a_server_says(serve: Serve, tmp_path: Path) -> None:
    model = write_example_checkpoint(tmp_path / "m", seed=1)
    with serve(model, kv_tokens=4096, chat_template=TEMPLATE) as server:
        said = f"<tool_call>{CALL}</tool_call>"
        body = {
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": TOOLS,
            "regex": said.replace("{", r"\{").replace("}", r"\}"),
            "max_tokens": 200,
        }
        (choice,) = server.post("/v1/chat/completions", body).json()["choices"]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
        assert choice["finish_reason"] == "tool_calls"


STRICT = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]


@pytest.mark.parametrize("own_token", [False, True])
def test_a_call_that_a_model_makes_by_itself_follows_a_strict_tool(own_token: bool, tmp_path: Path) -> None:
    """Whatever a model would rather say, once it has said the mark."""
    tokenizer = AutoTokenizer.from_pretrained(write_example_checkpoint(tmp_path / "m", seed=1))
    if own_token:
        tokenizer.add_tokens([OPEN, CLOSE])
    end = tokenizer.eos_token_id
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [end])

    def said(tools: tuple[Tool, ...], text: str) -> tuple[list[int], GrammarMatcher]:
        matcher = compiler.matcher(tagged(tools, own_token))
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
        for token in tokens:
            assert not matcher.advance(token)
        return tokens, matcher

    use = ToolUse(tuple(map(Tool.model_validate, STRICT)))
    for seed in range(4):
        rng = random.Random(seed)
        tokens, matcher = said(use.tools, f"So: {OPEN}")
        while True:
            mask = np.zeros((1, compiler.mask_width), np.int32)
            matcher.fill(mask)
            allowed = [*np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]
            tokens.append(int(end if end in allowed else rng.choice(allowed)))
            if tokens[-1] == end or matcher.advance(tokens[-1]):
                break
        reader = ToolReader(use)
        content = reader.feed(tokenizer.decode(tokens, skip_special_tokens=True))[0] + reader.end()[0]
        assert content == "So: "
        (call,) = reader.calls
        assert json.loads(call.arguments) in ({"city": "Rome"}, {"city": "Oslo"})
    loose = (Tool.model_validate(STRICT[0]), Tool.model_validate(TOOLS[1]))
    said(loose, f'{OPEN}{{"name": "time", "arguments": {{"any": [1]}}}}{CLOSE} and so on')
    with pytest.raises(GrammarRefused):
        said(loose, f'{OPEN}{{"name": "weather", "arguments": {{"any')


def test_under_a_strict_tool_nothing_but_a_marked_call_is_one() -> None:
    use = ToolUse(tuple(map(Tool.model_validate, STRICT)))
    for name in ("mistral", "llama", "python tag", "a function within"):
        reader = ToolReader(use)
        assert reader.feed(SAID[name])[0] + reader.end()[0] == SAID[name]
        assert reader.calls == []
    reader = ToolReader(use)
    assert reader.feed(SAID["two of them"])[0] + reader.end()[0] == ""
    assert len(reader.calls) == 2


def test_a_strict_tool_is_kept_or_refused(server: Server, serve: Serve, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": STRICT, "max_tokens": 3}
    refused = server.post("/v1/chat/completions", body)
    assert refused.status_code == 400
    assert "strict" in refused.json()["error"]["message"]
    for choice in ("required", "none"):
        assert server.post("/v1/chat/completions", {**body, "tool_choice": choice}).status_code == 200
    model = write_example_checkpoint(tmp_path / "m", seed=1)
    with serve(model, kv_tokens=4096, chat_template=f"{OPEN}{TEMPLATE}") as marked:
        assert marked.post("/v1/chat/completions", body).status_code == 200
        both = marked.post("/v1/chat/completions", {**body, "regex": "a"})
        assert both.status_code == 400, "what keeps it is a grammar"


def test_a_tool_may_refer_to_parts_of_its_own_schema(serve: Serve, tmp_path: Path) -> None:
    city = {"$ref": "#/$defs/City"}
    parameters = {
        "$defs": {"City": {"enum": ["Rome"]}},
        "type": "object",
        "properties": {"city": city},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools = [{**tool, "function": {**tool["function"], "parameters": parameters}} for tool in STRICT]
    model = write_example_checkpoint(tmp_path / "m", seed=1)
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools, "max_tokens": 400}
    with serve(model, kv_tokens=4096, chat_template=f"{OPEN}{TEMPLATE}") as server:
        for choice in ("required", {"type": "function", "function": {"name": "time"}}):
            answer = server.post("/v1/chat/completions", {**body, "tool_choice": choice, "seed": 1})
            assert answer.status_code == 200, answer.text
            calls = answer.json()["choices"][0]["message"]["tool_calls"]
            assert all(json.loads(one["function"]["arguments"])["city"] == "Rome" for one in calls)
        assert server.post("/v1/chat/completions", {**body, "max_tokens": 3}).status_code == 200
