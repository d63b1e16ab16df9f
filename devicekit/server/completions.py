"""``/v1/completions``, compatible with OpenAI's."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.engine import Generation
from devicekit.scheduling.request import TokenLogprob
from devicekit.server import openai_format as openai
from devicekit.server.endpoints import Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.events import EventStream
from devicekit.server.group import GenerationFailed, Group, SequenceSpec, several
from devicekit.server.keys import Access
from devicekit.server.serving import Serving

TokenId = Annotated[int, Field(strict=True)]
_DEFAULT_TOKENS = 16


class CompletionArguments(openai.OpenAIArguments):
    """Body of ``/v1/completions``."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: int = _DEFAULT_TOKENS
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


async def complete(serving: Serving, arguments: CompletionArguments, request: Request) -> Response:
    """Complete prompts, in OpenAI's format."""
    openai.need_tokenizer(serving)
    count = arguments.n or 1
    if arguments.echo or arguments.suffix or (arguments.best_of or count) != count:
        raise BadRequest("This engine does not support echo, suffix, and best_of other than n.")
    params = arguments.sampling(arguments.max_tokens, arguments.logprobs)
    prompts = await _prompts(serving, arguments.prompt)
    sequences: list[SequenceSpec] = []
    identity = arguments.rid or None
    for index, tokens in enumerate(prompts):
        one = SequenceSpec(
            tokens,
            params,
            priority=arguments.priority or 0,
            **({} if identity is None else {"id": identity if len(prompts) == 1 else f"{identity}_{index}"}),
        )
        sequences += several(one, count)
    group = Group(serving, sequences, stream=bool(arguments.stream))
    form = _Form(serving, f"cmpl-{sequences[0].id}", arguments.logprobs is not None)
    if arguments.stream:
        return EventStream(_chunks(group, form, arguments.wants_usage, len(prompts)), group.close)
    generations = await group.finish(request)
    choices = [form.choice(index, one, one.text, one.logprobs, 0) for index, one in enumerate(generations)]
    return JSONResponse({**form.head(), "choices": choices, "usage": openai.usage(generations, len(prompts))})


async def _prompts(
    serving: Serving, prompt: str | list[str] | list[int] | list[list[int]]
) -> list[Sequence[int]]:
    if isinstance(prompt, str):
        return [*await serving.encode([prompt])]
    if not prompt:
        raise BadRequest("The prompt is empty.")
    texts = [one for one in prompt if isinstance(one, str)]
    if texts:
        return [*await serving.encode(texts)]
    numbers = [one for one in prompt if isinstance(one, int)]
    if numbers:
        return [numbers]
    return [one for one in prompt if isinstance(one, list)]


async def _chunks(
    group: Group, form: _Form, with_usage: bool, prompts: int
) -> AsyncIterator[Mapping[str, object]]:
    offsets = [0] * len(group.generations)
    async for index, text, output in group.updates():
        if output.finish is not None and openai.failed(output.finish):
            raise GenerationFailed(output.finish.message)
        generation = group.generations[index]
        choice = form.choice(index, generation, text, output.logprobs, offsets[index])
        offsets[index] += len(text)
        yield {**form.head(), "choices": [choice], **({"usage": None} if with_usage else {})}
    if with_usage:
        yield {**form.head(), "choices": [], "usage": openai.usage(group.generations, prompts)}


class _Form:
    """Fills in answers and chunks, which have the same shape here."""

    def __init__(self, serving: Serving, identity: str, logprobs: bool) -> None:
        self._serving = serving
        self._id = identity
        self._created = int(time.time())
        self._logprobs = logprobs

    def head(self) -> dict[str, object]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._serving.model_name,
        }

    def choice(
        self, index: int, generation: Generation, text: str, logprobs: Sequence[TokenLogprob], offset: int
    ) -> dict[str, object]:
        return {
            "index": index,
            "text": text,
            "logprobs": self._log_probabilities(logprobs, offset) if self._logprobs else None,
            "finish_reason": openai.finish_name(generation.finish),
            "matched_stop": openai.matched_stop(generation.finish),
        }

    def _log_probabilities(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, object]:
        texts = [openai.token_text(self._serving, one.token) for one in logprobs]
        offsets: list[int] = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [openai.finite(one.logprob) for one in logprobs],
            "top_logprobs": [dict(openai.top_pairs(self._serving, one)) for one in logprobs],
            "text_offset": offsets,
        }


ENDPOINTS = (
    Endpoint(
        "/v1/completions",
        complete,
        CompletionArguments,
        "Complete prompts, in OpenAI's format.",
        access=Access.USER,
        tag="generation",
    ),
)
