"""``/v1/completions``, compatible with OpenAI's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.engine import Generation
from devicekit.scheduling.request import SamplingParams, TokenLogprob
from devicekit.server import openai_format as openai
from devicekit.server.answers import respond
from devicekit.server.endpoints import Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.events import EventStream
from devicekit.server.group import Group, SequenceSpec, failure, several, values_of
from devicekit.server.keys import Access
from devicekit.server.logprob_format import alternatives, finite, token_name
from devicekit.server.meta_info import MetaInfo
from devicekit.server.serving import Serving
from devicekit.text import RequestText, Vocabulary

TokenId = Annotated[int, Field(strict=True)]
_DEFAULT_TOKENS = 16


class CompletionArguments(openai.OpenAIArguments):
    """Body of ``/v1/completions``."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: int | None = Field(default=None, description=f"default: {_DEFAULT_TOKENS}; 0 with echo: none")
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = Field(
        default=None, description="answer with the prompt too, and its log-probabilities"
    )
    best_of: int | None = None
    add_special_tokens: bool | None = Field(
        default=None, description="as the tokenizer does by itself; default: true"
    )


async def complete(serving: Serving, arguments: CompletionArguments, request: Request) -> Response:
    """Complete prompts, in OpenAI's format."""
    began = time.monotonic()
    vocabulary = openai.need_tokenizer(serving)
    count = arguments.n or 1
    if (arguments.best_of or count) != count:
        raise BadRequest("This engine does not support best_of other than n.")
    most = _DEFAULT_TOKENS if arguments.max_tokens is None else arguments.max_tokens
    params = arguments.sampling(serving, most, arguments.logprobs)
    prompts, texts = await _prompts(serving, arguments)
    serving.check_count(len(prompts) * count)
    sequences: list[SequenceSpec] = []
    for index, tokens in enumerate(prompts):
        chosen = _echoing(params) if arguments.echo else params
        one = arguments.spec(serving, tokens, chosen, "" if len(prompts) == 1 else f"_{index}")
        sequences += several(one, count)
    await serving.compile(sequences)
    echoes = [_Echo(vocabulary, one, texts[at // count]) for at, one in enumerate(sequences)]
    group = Group(
        serving, sequences, stream=bool(arguments.stream), endpoint="/v1/completions", names=openai.NAMES
    )
    form = _Form(serving, arguments, sequences, echoes if arguments.echo else None, began)
    if arguments.stream:
        return EventStream(_chunks(group, form, arguments, len(prompts)), group.close)
    generations = await group.finish(request)

    def whole() -> object:
        choices = [form.whole(index, one) for index, one in enumerate(generations)]
        return {**form.head(), "choices": choices, "usage": openai.usage(generations, len(prompts))}

    return await respond(sum(map(values_of, generations)), whole)


def _echoing(params: SamplingParams) -> SamplingParams:
    """Parameters that report of the prompt too, where log-probabilities are wanted."""
    return params if params.logprobs is None else dataclasses.replace(params, prompt_logprobs=0)


async def _prompts(
    serving: Serving, arguments: CompletionArguments
) -> tuple[list[Sequence[int]], list[str | None]]:
    """Token ids of every prompt, and its text where it was given as such."""
    prompt, special = arguments.prompt, arguments.add_special_tokens is not False
    if isinstance(prompt, str):
        return [*await serving.encode([prompt], special)], [prompt]
    if not prompt:
        raise BadRequest("The prompt is empty.")
    texts = [one for one in prompt if isinstance(one, str)]
    if texts:
        return [*await serving.encode(texts, special)], [*texts]
    numbers = [one for one in prompt if isinstance(one, int)]
    if numbers:
        return [numbers], [None]
    nested = [one for one in prompt if isinstance(one, list)]
    return [*nested], [None] * len(nested)


async def _chunks(
    group: Group, form: _Form, arguments: CompletionArguments, prompts: int
) -> AsyncIterator[Mapping[str, object]]:
    begun: set[int] = set()
    async for index, text, output in group.updates():
        if (error := failure(output.finish)) is not None:
            raise error
        generation = group.generations[index]
        choice = form.part(index, generation, text, output.logprobs, first=index not in begun)
        begun.add(index)
        more: dict[str, object] = {}
        if arguments.wants_usage:
            counts = openai.usage(group.generations, prompts) if arguments.wants_usage_always else None
            more = {"usage": counts}
        yield {**form.head(), "choices": [choice], **more}
    if arguments.wants_usage:
        yield {**form.head(), "choices": [], "usage": openai.usage(group.generations, prompts)}


class _Echo:
    """The prompt as it stands before an output."""

    def __init__(self, vocabulary: Vocabulary, spec: SequenceSpec, text: str | None) -> None:
        self._vocabulary = vocabulary
        self._spec = spec
        self._given = text
        self._offsets: list[int] = []
        self._text: str | None = None

    @property
    def text(self) -> str:
        if self._text is None:
            made = RequestText(
                self._vocabulary, (), dataclasses.replace(self._spec.params.text_options, stop=())
            )
            for token in self._spec.tokens:
                made.push(token)
            made.end()
            decoded = made.take()
            self._text = decoded if self._given is None else self._given
            begins = made.offsets(0, len(self._spec.tokens))
            self._offsets = [min(begin, len(self._text)) for begin in begins]
        return self._text

    @property
    def offsets(self) -> list[int]:
        """Where each of its tokens begins."""
        return self._offsets if self.text is not None else []


class _Form:
    """Fills in answers and chunks, which have the same shape here."""

    def __init__(
        self,
        serving: Serving,
        arguments: CompletionArguments,
        sequences: Sequence[SequenceSpec],
        echoes: list[_Echo] | None,
        began: float,
    ) -> None:
        self._vocabulary = openai.need_tokenizer(serving)
        self._model = serving.model_name
        self._arguments = arguments
        self._sequences = sequences
        self._echoes = echoes
        self._meta = MetaInfo(serving, began, with_text=True)
        self._id = f"cmpl-{sequences[0].id}"
        self._created = int(time.time())

    def head(self) -> dict[str, object]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
        }

    def whole(self, index: int, generation: Generation) -> dict[str, object]:
        """The choice of a sequence that has ended."""
        return self.part(index, generation, generation.text, generation.logprobs, first=True)

    def part(
        self,
        index: int,
        generation: Generation,
        text: str,
        logprobs: Sequence[TokenLogprob],
        *,
        first: bool,
    ) -> dict[str, object]:
        """What a sequence gained; its ``first`` part has the prompt too, if that is to be echoed."""
        echo = None if self._echoes is None else self._echoes[index]
        wanted = self._arguments.logprobs is not None
        choice: dict[str, object] = {
            "index": index,
            "text": (echo.text if echo is not None and first else "") + text,
            "logprobs": self._logprobs(index, generation, logprobs, echo, first) if wanted else None,
            "finish_reason": openai.finish_name(generation.finish),
            "matched_stop": openai.matched_stop(generation.finish),
        }
        if self._arguments.return_token_ids:
            choice["token_ids"] = [*generation.tokens[len(generation.tokens) - generation.gained :]]
            if first:
                choice["token_ids"] = [*generation.tokens]
                choice["prompt_token_ids"] = [*self._sequences[index].tokens]
        if self._arguments.return_meta_info:
            choice["meta_info"] = self._meta.of(self._sequences[index], generation)
        return choice

    def _logprobs(
        self,
        index: int,
        generation: Generation,
        logprobs: Sequence[TokenLogprob],
        echo: _Echo | None,
        first: bool,
    ) -> dict[str, object]:
        begin = 0 if echo is None else len(echo.text)
        at = len(generation.logprobs) - len(logprobs)
        offsets = [begin + one for one in generation.offsets[at : at + len(logprobs)]]
        entries = [*logprobs]
        tokens, values = [self._name(one) for one in entries], [finite(one.logprob) for one in entries]
        tops: list[object] = [self._top(one) for one in entries]
        if echo is not None and first:
            prompt = generation.prompt_logprobs
            head = token_name(self._vocabulary, int(self._sequences[index].tokens[0]))
            tokens = [head, *map(self._name, prompt), *tokens]
            values = [None, *(finite(one.logprob) for one in prompt), *values]
            tops = [None, *map(self._top, prompt), *tops]
            offsets = [*echo.offsets, *offsets]
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
            "distribution": "raw" if self._sequences[index].params.raw_logprobs else "sampled",
        }

    def _name(self, one: TokenLogprob) -> str:
        return token_name(self._vocabulary, one.token)

    def _top(self, one: TokenLogprob) -> dict[str, float | None]:
        count = max(1, self._arguments.logprobs or 0)
        return {entry.name: entry.logprob for entry in alternatives(self._vocabulary, one, count)}


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
