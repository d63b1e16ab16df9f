"""``/v1/chat/completions``, compatible with OpenAI's, for models whose tokenizer has a chat template."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.engine import Generation
from devicekit.scheduling.request import Finish, FinishKind, TokenLogprob
from devicekit.server import openai_format as openai
from devicekit.server.answers import respond
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.events import EventStream
from devicekit.server.group import Group, SequenceSpec, failure, several, values_of
from devicekit.server.keys import Access
from devicekit.server.logprob_format import Named, alternatives, named
from devicekit.server.meta_info import MetaInfo
from devicekit.server.prompts import tokens_of
from devicekit.server.serving import Serving
from devicekit.server.tool_grammar import OPEN, tagged
from devicekit.server.tools import Call, Tool, ToolChoice, ToolReader, ToolUse, marks_hidden
from devicekit.text import Grammar

# What the tokenizer takes for its own, and what would give back something else than text.
_TAKEN = frozenset(
    {
        "conversation",
        "messages",
        "chat_template",
        "tokenize",
        "tokenizer_kwargs",
        "return_dict",
        "return_tensors",
    }
    | {"return_assistant_tokens_mask", "padding", "truncation", "max_length", "tools"}
)


_NAMES = {
    **openai.NAMES,
    "logprobs": "top_logprobs",
    "prompt_logprobs": "log-probabilities of a prompt, of /v1/completions",
}
_NEWER_NAMES = {**_NAMES, "max_new_tokens": "max_completion_tokens"}


class TextPart(Arguments):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Arguments):
    """One message of a conversation. Whatever else it has reaches the chat template."""

    takes_anything = True

    role: str
    content: str | list[TextPart] | None = None

    @property
    def texts(self) -> list[str]:
        """Its content, part by part."""
        parts = self.content
        return [part.text for part in parts] if isinstance(parts, list) else [parts or ""]

    def document(self) -> dict[str, object]:
        """As the template reads it: content as text, the arguments of calls as what they say."""
        others = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        if isinstance(calls := others.get("tool_calls"), list):
            others["tool_calls"] = [_spelled_out(call) for call in calls]
        return {"role": self.role, "content": "".join(self.texts), **others}


class ChatArguments(openai.OpenAIArguments):
    """Body of ``/v1/chat/completions``."""

    needs = MappingProxyType({"top_logprobs": "logprobs"})

    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    input_ids: list[Annotated[int, Field(strict=True)]] | None = Field(
        default=None, description="the prompt in token ids, instead of what the template makes of messages"
    )
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    reasoning_effort: str | None = Field(default=None, description="for the template")
    add_generation_prompt: bool | None = Field(default=None, description="for the template; default: true")
    continue_final_message: bool | None = Field(
        default=None, description="go on with the last message instead of beginning another"
    )


async def chat(serving: Serving, arguments: ChatArguments, request: Request) -> Response:
    """Continue a conversation, in OpenAI's format."""
    began = time.monotonic()
    openai.need_tokenizer(serving)
    use = ToolUse.of(arguments.tools, arguments.tool_choice, arguments.parallel_tool_calls)
    tokens = await _prompt(serving, arguments, use)
    most = (
        arguments.max_tokens if arguments.max_completion_tokens is None else arguments.max_completion_tokens
    )
    params = arguments.sampling(
        serving,
        max(1, serving.longest - len(tokens)) if most is None else most,
        (arguments.top_logprobs or 0) if arguments.logprobs else None,
        [_tagged(serving, use)] if use.strict else use.grammar(),
    )
    if use.tools and arguments.skip_special_tokens is None and _hides_marks(serving):
        params = dataclasses.replace(params, skip_special_tokens=False)
    one = arguments.spec(serving, tokens, params)
    sequences = several(one, arguments.n or 1)
    await serving.compile(sequences)
    group = Group(
        serving,
        sequences,
        stream=bool(arguments.stream),
        endpoint="/v1/chat/completions",
        names=_NAMES if arguments.max_completion_tokens is None else _NEWER_NAMES,
    )
    form = _Form(serving, arguments, sequences, use, began)
    if arguments.stream:
        return EventStream(_chunks(group, form, arguments), group.close)
    generations = await group.finish(request)

    def whole() -> object:
        choices = [form.choice(index, generation) for index, generation in enumerate(generations)]
        document = {**form.head("chat.completion"), "choices": choices, "usage": openai.usage(generations, 1)}
        return {**document, "prompt_token_ids": [*tokens]} if arguments.return_token_ids else document

    return await respond(sum(map(values_of, generations)), whole)


async def _prompt(serving: Serving, arguments: ChatArguments, use: ToolUse) -> list[int]:
    if arguments.input_ids:
        return arguments.input_ids
    if not arguments.messages:
        raise BadRequest("messages: there are none, and no input_ids.")
    length = sum(len(text) for message in arguments.messages for text in message.texts)
    return await serving.compute(length, lambda: render(serving, arguments, use))


def render(serving: Serving, arguments: ChatArguments, use: ToolUse) -> list[int]:
    """The conversation as the prompt that the model was taught, in token ids.

    Raises:
        BadRequest: there is no template, or it does not take these messages.
    """
    tokenizer = serving.engine.tokenizer
    template = serving.settings.chat_template or getattr(tokenizer, "chat_template", None)
    if tokenizer is None or template is None:
        raise BadRequest(
            "This model's tokenizer has no chat template. The server's operator can give one with --chat-template."
        )
    given = {**(arguments.chat_template_kwargs or {})}
    if taken := sorted(given.keys() & _TAKEN):
        raise BadRequest(
            f"chat_template_kwargs are for the template, which has no say in {', '.join(taken)}."
        )
    for name in ("reasoning_effort", "add_generation_prompt", "continue_final_message"):
        if (value := getattr(arguments, name)) is not None:
            given[name] = value
    given.setdefault("add_generation_prompt", not given.get("continue_final_message"))
    try:
        text: str = tokenizer.apply_chat_template(
            [message.document() for message in arguments.messages or ()],
            chat_template=serving.settings.chat_template,
            tools=use.documents(),
            tokenize=False,
            **given,
        )
    except Exception as error:  # a template is a program, and these are its arguments
        raise BadRequest(
            f"The chat template does not take these messages: {type(error).__name__}: {error}"
        ) from error
    longest = serving.engine.runner.limits.max_positions
    # A template writes the special tokens itself.
    return tokens_of(lambda part: tokenizer.encode(part, add_special_tokens=False), text, longest)


def _tagged(serving: Serving, use: ToolUse) -> Grammar:
    """What keeps the calls that this model makes by itself to their tools' schemas.

    Raises:
        BadRequest: it is not known how its calls begin.
    """
    tokenizer: Any = serving.engine.tokenizer
    template = serving.settings.chat_template or getattr(tokenizer, "chat_template", None)
    if OPEN not in str(template) or getattr(tokenizer, "response_template", None) is not None:
        raise BadRequest(
            f"tools: function.strict needs a chat template whose calls stand in {OPEN}, or a tool_choice that "
            "demands a call."
        )
    return tagged(use.tools, OPEN in tokenizer.get_vocab())


def _spelled_out(call: object) -> object:
    """A tool call whose arguments are what their JSON says: so templates expect them."""
    if not isinstance(call, Mapping) or not isinstance(function := call.get("function"), Mapping):
        return call
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(arguments)}}
    except (ValueError, RecursionError):
        return call


def _hides_marks(serving: Serving) -> bool:
    tokenizer: Any = serving.engine.tokenizer
    return tokenizer is not None and marks_hidden(tokenizer.get_vocab(), tokenizer.all_special_ids)


async def _chunks(group: Group, form: _Form, arguments: ChatArguments) -> AsyncIterator[Mapping[str, object]]:
    def with_usage(chunk: dict[str, object]) -> dict[str, object]:
        if not arguments.wants_usage:
            return chunk
        return {
            **chunk,
            "usage": openai.usage(group.generations, 1) if arguments.wants_usage_always else None,
        }

    for index in range(len(group.generations)):
        yield with_usage(form.chunk(index, {"role": "assistant", "content": ""}))
    async for index, text, output in group.updates():
        if (error := failure(output.finish)) is not None:
            raise error
        generation = group.generations[index]
        for delta in form.deltas(index, text, done=output.finish is not None):
            logprobs = () if "tool_calls" in delta else output.logprobs
            yield with_usage(form.chunk(index, delta, generation, logprobs=logprobs))
            output = output._replace(logprobs=())  # they are told of once
        if output.logprobs or (arguments.return_token_ids and output.tokens):
            yield with_usage(form.chunk(index, {"content": ""}, generation, logprobs=output.logprobs))
        if output.finish is not None:
            yield with_usage(form.chunk(index, {}, generation, last=True))
    if arguments.wants_usage:
        head = form.head("chat.completion.chunk")
        yield {**head, "choices": [], "usage": openai.usage(group.generations, 1)}


class _Form:
    """Fills in answers and chunks."""

    def __init__(
        self,
        serving: Serving,
        arguments: ChatArguments,
        sequences: Sequence[SequenceSpec],
        use: ToolUse,
        began: float,
    ) -> None:
        self._vocabulary = openai.need_tokenizer(serving)
        self._model = serving.model_name
        self._arguments = arguments
        self._sequences = sequences
        self._readers = [ToolReader(use, serving.engine.tokenizer) for _ in sequences]
        self._told = [0] * len(sequences)  # token ids so far
        self._meta = MetaInfo(serving, began, with_text=True)
        self._id = f"chatcmpl-{sequences[0].id}"
        self._created = int(time.time())

    def head(self, kind: str) -> dict[str, object]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def choice(self, index: int, generation: Generation) -> dict[str, object]:
        reader = self._readers[index]
        content, _ = reader.feed(generation.text)
        content += reader.end()[0]
        message: dict[str, object] = {"role": "assistant", "content": content}
        if reader.calls:
            message = {
                **message,
                "content": content or None,
                "tool_calls": [call.document() for call in reader.calls],
            }
        choice: dict[str, object] = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(index, generation.logprobs) if self._arguments.logprobs else None,
            "finish_reason": self._finish(index, generation.finish),
            "matched_stop": openai.matched_stop(generation.finish),
        }
        return {**choice, **self._extras(index, generation)}

    def deltas(self, index: int, text: str, *, done: bool) -> list[dict[str, object]]:
        """What a stream gains by some text: content, and calls."""
        reader = self._readers[index]
        before = len(reader.calls)
        content, calls = reader.feed(text)
        if done:
            rest, last = reader.end()
            content, calls = content + rest, [*calls, *last]
        found: list[dict[str, object]] = [{"content": content}] if content else []
        found += [_called(call.document(before + at)) for at, call in enumerate(calls)]
        return found

    def chunk(
        self,
        index: int,
        delta: Mapping[str, object],
        generation: Generation | None = None,
        *,
        logprobs: Sequence[TokenLogprob] = (),
        last: bool = False,
    ) -> dict[str, object]:
        """``last``: the sequence has ended with this chunk."""
        finish = generation.finish if generation is not None and last else None
        choice: dict[str, object] = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(index, logprobs) if logprobs else None,
            "finish_reason": self._finish(index, finish),
        }
        if generation is not None:
            choice.update(self._extras(index, generation, since_last=True, ended=last))
        if last:
            choice["matched_stop"] = openai.matched_stop(finish)
        return {**self.head("chat.completion.chunk"), "choices": [choice]}

    def _finish(self, index: int, finish: Finish | None) -> str | None:
        if finish is not None and finish.kind is FinishKind.STOP and self._readers[index].calls:
            return "tool_calls"
        return openai.finish_name(finish)

    def _extras(
        self, index: int, generation: Generation, *, since_last: bool = False, ended: bool = True
    ) -> dict[str, object]:
        extras: dict[str, object] = {}
        if self._arguments.return_token_ids:
            begin = self._told[index] if since_last else 0
            extras["token_ids"] = generation.tokens[begin:]
            self._told[index] = len(generation.tokens)
        if self._arguments.return_meta_info and ended:
            extras["meta_info"] = self._meta.of(self._sequences[index], generation)
        return extras

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
        count = self._arguments.top_logprobs or 0
        entries = []
        for one in logprobs:
            top = alternatives(self._vocabulary, one, count) if count else []
            own = named(self._vocabulary, one.token, one.logprob)
            entries.append({**_entry(own), "top_logprobs": [_entry(entry) for entry in top]})
        raw = self._sequences[index].params.raw_logprobs
        return {"content": entries, "distribution": "raw" if raw else "sampled"}


def _called(document: dict[str, object]) -> dict[str, object]:
    return {"tool_calls": [document]}


def _entry(one: Named) -> dict[str, object]:
    return {"token": one.name, "logprob": one.logprob, "bytes": one.bytes}


ENDPOINTS = (
    Endpoint(
        "/v1/chat/completions",
        chat,
        ChatArguments,
        "Continue a conversation, in OpenAI's format.",
        access=Access.USER,
        tag="generation",
    ),
)

__all__ = ["ENDPOINTS", "Call", "ChatArguments", "Message", "render"]
