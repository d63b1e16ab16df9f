"""``/v1/chat/completions``, compatible with OpenAI's, for models whose tokenizer has a chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.engine import Generation
from devicekit.scheduling.request import TokenLogprob
from devicekit.server import openai_format as openai
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.events import EventStream
from devicekit.server.group import GenerationFailed, Group, SequenceSpec, several
from devicekit.server.keys import Access
from devicekit.server.serving import Serving

# What the tokenizer takes for its own, and what would give back something else than text.
_TAKEN = frozenset(
    {"conversation", "chat_template", "tokenize", "tokenizer_kwargs", "return_dict", "return_tensors"}
    | {"return_assistant_tokens_mask", "padding", "truncation", "max_length"}
)


class TextPart(Arguments):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Arguments):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[object] | None = None

    @property
    def texts(self) -> list[str]:
        """Its content, part by part."""
        parts = self.content
        return [part.text for part in parts] if isinstance(parts, list) else [parts or ""]


class ResponseFormat(Arguments):
    """``response_format``."""

    type: str


class ChatArguments(openai.OpenAIArguments):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[object] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, object] | None = None


async def chat(serving: Serving, arguments: ChatArguments, request: Request) -> Response:
    """Continue a conversation, in OpenAI's format."""
    openai.need_tokenizer(serving)
    called = any(message.tool_calls for message in arguments.messages)
    constrained = arguments.response_format is not None and arguments.response_format.type != "text"
    if arguments.tools or called or constrained:
        raise BadRequest("This engine does not support tools and response_format other than text.")
    length = sum(len(text) for message in arguments.messages for text in message.texts)
    tokens = await serving.compute(length, lambda: _render(serving, arguments))
    most = (
        arguments.max_tokens if arguments.max_completion_tokens is None else arguments.max_completion_tokens
    )
    longest = serving.engine.runner.limits.max_positions
    params = arguments.sampling(
        max(1, longest - len(tokens)) if most is None else most,
        (arguments.top_logprobs or 0) if arguments.logprobs else None,
    )
    one = SequenceSpec(
        tokens,
        params,
        priority=arguments.priority or 0,
        **({"id": arguments.rid} if arguments.rid else {}),
    )
    group = Group(serving, several(one, arguments.n or 1), stream=bool(arguments.stream))
    form = _Form(serving, f"chatcmpl-{one.id}", bool(arguments.logprobs))
    if arguments.stream:
        return EventStream(_chunks(group, form, arguments.wants_usage), group.close)
    generations = await group.finish(request)
    choices = [form.choice(index, generation) for index, generation in enumerate(generations)]
    head = form.head("chat.completion")
    return JSONResponse({**head, "choices": choices, "usage": openai.usage(generations, 1)})


def _render(serving: Serving, arguments: ChatArguments) -> list[int]:
    """The conversation as the prompt that the model was taught, in token ids."""
    tokenizer = serving.engine.tokenizer
    template = serving.settings.chat_template or getattr(tokenizer, "chat_template", None)
    if tokenizer is None or template is None:
        raise BadRequest(
            "This model's tokenizer has no chat template. The server's operator can give one with --chat-template."
        )
    messages = [
        {"role": message.role, "content": "".join(message.texts)}
        | ({"name": message.name} if message.name else {})
        for message in arguments.messages
    ]
    given = arguments.chat_template_kwargs or {}
    if taken := sorted(given.keys() & _TAKEN):
        raise BadRequest(
            f"chat_template_kwargs are for the template, which has no say in {', '.join(taken)}."
        )
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=serving.settings.chat_template,
            tokenize=False,
            **{"add_generation_prompt": True, **given},
        )
    except Exception as error:  # a template is a program, and these are its arguments
        raise BadRequest(
            f"The chat template does not take these messages: {type(error).__name__}: {error}"
        ) from error
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)  # a template writes them itself
    return tokens


async def _chunks(group: Group, form: _Form, with_usage: bool) -> AsyncIterator[Mapping[str, object]]:
    extra = {"usage": None} if with_usage else {}
    for index in range(len(group.generations)):
        yield {**form.chunk(index, {"role": "assistant", "content": ""}), **extra}
    async for index, text, output in group.updates():
        if output.finish is not None and openai.failed(output.finish):
            raise GenerationFailed(output.finish.message)
        if text or output.logprobs:
            yield {**form.chunk(index, {"content": text}, logprobs=output.logprobs), **extra}
        if output.finish is not None:
            yield {**form.chunk(index, {}, generation=group.generations[index]), **extra}
    if with_usage:
        head = form.head("chat.completion.chunk")
        yield {**head, "choices": [], "usage": openai.usage(group.generations, 1)}


class _Form:
    """Fills in answers and chunks."""

    def __init__(self, serving: Serving, identity: str, logprobs: bool) -> None:
        self._serving = serving
        self._id = identity
        self._created = int(time.time())
        self._logprobs = logprobs

    def head(self, kind: str) -> dict[str, object]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._serving.model_name}

    def choice(self, index: int, generation: Generation) -> dict[str, object]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": generation.text},
            "logprobs": self._log_probabilities(generation.logprobs),
            "finish_reason": openai.finish_name(generation.finish),
            "matched_stop": openai.matched_stop(generation.finish),
        }

    def chunk(
        self,
        index: int,
        delta: Mapping[str, str],
        *,
        generation: Generation | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, object]:
        """``generation``: the one that has ended with this chunk."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._log_probabilities(logprobs) if logprobs else None,
            "finish_reason": None if generation is None else openai.finish_name(generation.finish),
        }
        return {**self.head("chat.completion.chunk"), "choices": [choice]}

    def _log_probabilities(self, logprobs: Sequence[TokenLogprob]) -> dict[str, object] | None:
        if not self._logprobs:
            return None
        entries = []
        for one in logprobs:
            top = [_entry(text, value) for text, value in openai.top_pairs(self._serving, one)]
            text = openai.token_text(self._serving, one.token)
            entries.append({**_entry(text, openai.finite(one.logprob)), "top_logprobs": top})
        return {"content": entries}


def _entry(text: str, logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


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
