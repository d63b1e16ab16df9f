"""``/generate``: completions in SGLang's wire format, from text or token ids, one or many, streamed or whole."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from devicekit.engine import Generation
from devicekit.server.answers import respond
from devicekit.server.endpoints import Arguments, Endpoint, Label
from devicekit.server.errors import BadRequest
from devicekit.server.events import EventStream
from devicekit.server.group import Group, SequenceSpec, failure, namespace_of, several, values_of
from devicekit.server.keys import Access
from devicekit.server.meta_info import MetaInfo
from devicekit.server.sampling import SamplingArguments
from devicekit.server.serving import Serving

_T = TypeVar("_T")
_COUNT = "sampling_params has {items} items, and there are {prompts} prompts."
TokenId = Annotated[int, Field(strict=True)]
_TopLogprobs = Annotated[int, Field(ge=0)]
_Ids = Annotated[list[TokenId], Field(max_length=1024)]
_NAMES = {
    "logprobs": "top_logprobs_num",
    "logprob_ids": "token_ids_logprob",
    "prompt_logprobs": "logprob_start_len",
    "seed": "sampling_seed",
}
Priority = Annotated[
    int | None,
    Field(
        description="higher is admitted first, by a server with --policy priority; elsewhere only 0 is taken"
    ),
]
LogprobsMode = Literal["sampled", "raw"]


class GenerateArguments(Arguments):
    """Either ``text`` or ``input_ids``; a list of them is a batch, and then other fields may be lists too."""

    needs = MappingProxyType(
        dict.fromkeys(("top_logprobs_num", "logprob_start_len", "token_ids_logprob"), "return_logprob")
    )

    text: str | list[str] | None = None
    input_ids: list[TokenId] | list[list[TokenId]] | None = None
    sampling_params: SamplingArguments | list[SamplingArguments] | None = None
    rid: Label | list[Label] | None = None
    return_logprob: bool | list[bool] | None = None
    top_logprobs_num: _TopLogprobs | list[_TopLogprobs] | None = None
    logprob_start_len: int | list[int] | None = Field(
        default=None, description="prompt token from which on log-probabilities are returned; -1: of none"
    )
    token_ids_logprob: _Ids | list[_Ids] | None = Field(
        default=None, description="further tokens whose log-probability is returned at each place"
    )
    logprobs_mode: LogprobsMode | None = Field(
        default=None,
        description="sampled: of the distribution that tokens are drawn from; raw: of the model's own; "
        "default: as the server is set; of those that are asked for",
    )
    return_text_in_logprobs: bool | None = Field(
        default=None, description="the text of tokens beside their log-probabilities, where any are asked for"
    )
    stream: bool | None = None
    priority: Priority = None
    extra_key: Label | None = Field(default=None, description="share cached prefixes only with the same one")
    cache_salt: Label | None = Field(default=None, description="and with the same one of these")

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_prompts(cls, given: object) -> object:
        """Each of these becomes an object of a kilobyte: they are counted before."""
        if isinstance(given, dict) and isinstance(params := given.get("sampling_params"), list):
            prompts = given.get("text") or given.get("input_ids")
            many = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
            count = len(prompts) if many and isinstance(prompts, list) else 1
            if len(params) != count:
                raise PydanticCustomError("count", _COUNT, {"items": len(params), "prompts": count})
        return given


async def generate(serving: Serving, arguments: GenerateArguments, request: Request) -> Response:
    """Complete prompts."""
    began = time.monotonic()
    prompts, batched = await _prompts(serving, arguments)
    if not prompts:
        raise BadRequest("text, or input_ids: the batch is empty.")
    _check_count(serving, arguments, len(prompts))
    sequences, many = _sequences(serving, arguments, prompts)
    many = many or batched
    await serving.compile(sequences)
    meta = MetaInfo(serving, began, bool(arguments.return_text_in_logprobs))
    group = Group(serving, sequences, stream=bool(arguments.stream), endpoint="/generate", names=_NAMES)
    form = _Form(serving, meta, sequences)
    if arguments.stream:
        return EventStream(_chunks(group, form, many), group.close)
    generations = await group.finish(request)

    def whole() -> object:
        answers = [form.answer(at, generation) for at, generation in enumerate(generations)]
        return answers if many else answers[0]

    return await respond(sum(map(values_of, generations)), whole)


async def _prompts(serving: Serving, arguments: GenerateArguments) -> tuple[list[list[int]], bool]:
    """Token ids of every prompt, and whether it is a batch."""
    text, ids = arguments.text, arguments.input_ids
    if (text is None) == (ids is None):
        raise BadRequest("Send either text or input_ids.")
    if text is not None:
        return await serving.encode([text] if isinstance(text, str) else text), not isinstance(text, str)
    nested = [one for one in ids or () if isinstance(one, list)]
    if nested:
        return nested, True
    return [[one for one in ids or () if isinstance(one, int)]], False


def _check_count(serving: Serving, arguments: GenerateArguments, prompts: int) -> None:
    """Raises BadRequest for more sequences than this server takes, before any of them is made."""
    given = arguments.sampling_params
    if isinstance(given, list):
        serving.check_count(max(prompts, sum(one.n or 1 for one in given)))
    else:
        serving.check_count(prompts * ((given and given.n) or 1))


def _sequences(
    serving: Serving, arguments: GenerateArguments, prompts: list[list[int]]
) -> tuple[list[SequenceSpec], bool]:
    """Every sequence asked for, and whether some prompt has more than one."""
    count = len(prompts)
    sampling = _each(arguments.sampling_params, count, "sampling_params")
    logprobs = _each(arguments.return_logprob, count, "return_logprob")
    top = _each(arguments.top_logprobs_num, count, "top_logprobs_num")
    starts = _each(arguments.logprob_start_len, count, "logprob_start_len")
    ids = _ids_of_each(arguments.token_ids_logprob, count)
    rids = _rids(arguments.rid, count)
    raw = (arguments.logprobs_mode or serving.settings.logprobs_mode) == "raw"
    found: list[SequenceSpec] = []
    for index, tokens in enumerate(prompts):
        chosen = sampling[index] or SamplingArguments()
        params = chosen.params()
        if logprobs[index]:
            start = starts[index]
            params = dataclasses.replace(
                params,
                logprobs=top[index] or 0,
                logprob_ids=tuple(ids[index]),
                prompt_logprobs=None if start is None or start < 0 else start,
                raw_logprobs=raw,
            )
        given = {"id": rid} if (rid := rids[index]) else {}
        one = SequenceSpec(
            tokens,
            params,
            priority=serving.priority(arguments.priority),
            namespace=namespace_of(arguments.extra_key, arguments.cache_salt),
            **given,
        )
        found += several(one, chosen.n or 1)
    return found, len(found) > count


def _each(value: _T | list[_T] | None, count: int, name: str) -> list[_T | None]:
    """One value per prompt."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise BadRequest(f"{name} has {len(value)} items, and there are {count} prompts.")
    return [*value]


def _ids_of_each(value: list[int] | list[list[int]] | None, count: int) -> Sequence[list[int]]:
    """Chosen ids per prompt; a flat list is everybody's."""
    nested = [one for one in value or () if isinstance(one, list)]
    if not nested:
        return [[one for one in value or () if isinstance(one, int)]] * count
    if len(nested) != count:
        raise BadRequest(f"token_ids_logprob has {len(nested)} items, and there are {count} prompts.")
    return nested


def _rids(rid: str | list[str] | None, count: int) -> list[str | None]:
    if isinstance(rid, str) and count > 1:
        return [f"{rid}_{index}" for index in range(count)]
    return _each(rid, count, "rid")


async def _chunks(group: Group, form: _Form, many: bool) -> AsyncIterator[Mapping[str, object]]:
    """One document per increment, each with everything so far."""
    async for index, _, output in group.updates():
        generation = group.generations[index]
        if (error := failure(output.finish)) is not None:
            raise error
        answer = form.answer(index, generation)
        yield {**answer, "index": index} if many else answer


class _Form:
    """Fills in the answer of one sequence."""

    def __init__(self, serving: Serving, meta: MetaInfo, sequences: Sequence[SequenceSpec]) -> None:
        self._has_text = serving.engine.vocabulary is not None
        self._meta = meta
        self._sequences = sequences

    def answer(self, index: int, generation: Generation) -> dict[str, object]:
        meta = self._meta.of(self._sequences[index], generation)
        answer: dict[str, object] = {"output_ids": generation.tokens, "meta_info": meta}
        if self._has_text:
            answer["text"] = generation.text
        return answer


ENDPOINTS = (
    Endpoint(
        "/generate",
        generate,
        GenerateArguments,
        "Complete prompts, given as text or token ids.",
        methods=("POST", "PUT"),
        access=Access.USER,
        tag="generation",
    ),
)
