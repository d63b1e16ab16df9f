"""``/generate``: completions in SGLang's wire format, from text or token ids, one or many, streamed or whole."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.engine import Generation
from devicekit.scheduling.request import Finish, FinishKind
from devicekit.server.endpoints import Arguments, Endpoint, Label
from devicekit.server.errors import BadRequest
from devicekit.server.events import EventStream
from devicekit.server.group import GenerationFailed, Group, SequenceSpec, several
from devicekit.server.keys import Access
from devicekit.server.sampling import SamplingArguments
from devicekit.server.serving import Serving

_T = TypeVar("_T")
TokenId = Annotated[int, Field(strict=True)]
_IMPOSSIBLE = (
    "input_embeds",
    "image_data",
    "video_data",
    "audio_data",
    "lora_path",
    "session_params",
    "return_hidden_states",
    "custom_logit_processor",
)
_TopLogprobs = Annotated[int, Field(ge=0)]


class GenerateArguments(Arguments):
    """Either ``text`` or ``input_ids``; a list of them is a batch, and then other fields may be lists too."""

    text: str | list[str] | None = None
    input_ids: list[TokenId] | list[list[TokenId]] | None = None
    sampling_params: SamplingArguments | list[SamplingArguments] | None = None
    rid: Label | list[Label] | None = None
    return_logprob: bool | list[bool] | None = None
    top_logprobs_num: _TopLogprobs | list[_TopLogprobs] | None = None
    logprob_start_len: int | list[int] | None = None
    return_text_in_logprobs: bool | None = None
    stream: bool | None = None
    priority: int | None = None
    # Known, and impossible here: to let them pass would answer something else than was asked.
    input_embeds: object = None
    image_data: object = None
    video_data: object = None
    audio_data: object = None
    lora_path: object = None
    session_params: object = None
    return_hidden_states: object = None
    custom_logit_processor: object = None

    def refuse_unsupported(self) -> None:
        """Raises BadRequest for what this engine cannot do."""
        asked = [name for name in _IMPOSSIBLE if getattr(self, name)]
        if asked:
            raise BadRequest(f"This engine does not support {', '.join(asked)}.")
        starts = (
            self.logprob_start_len if isinstance(self.logprob_start_len, list) else [self.logprob_start_len]
        )
        if any(start is not None and start >= 0 for start in starts) and self.return_logprob:
            raise BadRequest(
                "Log-probabilities of prompt tokens are not supported: logprob_start_len must be -1."
            )


async def generate(serving: Serving, arguments: GenerateArguments, request: Request) -> Response:
    """Complete prompts."""
    began = time.monotonic()
    arguments.refuse_unsupported()
    prompts, batched = await _prompts(serving, arguments)
    if not prompts:
        raise BadRequest("The batch is empty.")
    sequences, many = _sequences(arguments, prompts)
    many = many or batched
    form = _Form(serving, arguments, began)
    group = Group(serving, sequences, stream=bool(arguments.stream))
    if arguments.stream:
        return EventStream(_chunks(group, form, many), group.close)
    answers = [form.answer(generation) for generation in await group.finish(request)]
    return JSONResponse(answers if many else answers[0])


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


def _sequences(arguments: GenerateArguments, prompts: list[list[int]]) -> tuple[list[SequenceSpec], bool]:
    """Every sequence asked for, and whether some prompt has more than one."""
    count = len(prompts)
    sampling = _each(arguments.sampling_params, count, "sampling_params")
    logprobs = _each(arguments.return_logprob, count, "return_logprob")
    top = _each(arguments.top_logprobs_num, count, "top_logprobs_num")
    rids = _ids(arguments.rid, count)
    found: list[SequenceSpec] = []
    for index, tokens in enumerate(prompts):
        chosen = sampling[index] or SamplingArguments()
        params = chosen.params((top[index] or 0) if logprobs[index] else None)
        given = {"id": rid} if (rid := rids[index]) else {}
        one = SequenceSpec(
            tokens,
            params,
            priority=arguments.priority or 0,
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


def _ids(rid: str | list[str] | None, count: int) -> list[str | None]:
    if isinstance(rid, str) and count > 1:
        return [f"{rid}_{index}" for index in range(count)]
    return _each(rid, count, "rid")


async def _chunks(group: Group, form: _Form, many: bool) -> AsyncIterator[Mapping[str, object]]:
    """One document per increment, each with everything so far."""
    async for index, _, output in group.updates():
        generation = group.generations[index]
        if output.finish is not None and output.finish.kind is FinishKind.ERROR:
            raise GenerationFailed(output.finish.message)
        answer = form.answer(generation)
        yield {**answer, "index": index} if many else answer


class _Form:
    """Fills in the answer of one sequence."""

    def __init__(self, serving: Serving, arguments: GenerateArguments, began: float) -> None:
        self._serving = serving
        self._texts = bool(arguments.return_text_in_logprobs)
        self._began = began

    def answer(self, generation: Generation) -> dict[str, object]:
        version = self._serving.loop.snapshot.weight_version
        if generation.done and generation.spans:
            version = generation.spans[-1].version
        meta: dict[str, object] = {
            "id": generation.id,
            "finish_reason": finish_reason(generation.finish, len(generation.tokens)),
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": len(generation.tokens),
            "cached_tokens": generation.cached_tokens,
            "total_retractions": generation.retractions,
            "weight_version": version,
            "e2e_latency": time.monotonic() - self._began,
        }
        if len(generation.spans) > 1:
            meta["weight_versions"] = [
                {"version": span.version, "start": span.start, "end": span.end} for span in generation.spans
            ]
        if generation.logprobs:
            meta["input_token_logprobs"] = []
            meta["output_token_logprobs"] = [
                self._entry(one.logprob, one.token) for one in generation.logprobs
            ]
            if generation.logprobs[0].top:
                meta["output_top_logprobs"] = [
                    [self._entry(value, token) for token, value in one.top] for one in generation.logprobs
                ]
        answer: dict[str, object] = {"output_ids": generation.tokens, "meta_info": meta}
        if self._serving.engine.vocabulary is not None:
            answer["text"] = generation.text
        return answer

    def _entry(self, logprob: float, token: int) -> list[object]:
        tokenizer = self._serving.engine.tokenizer
        text = tokenizer.decode([token]) if self._texts and tokenizer is not None else None
        return [logprob if math.isfinite(logprob) else None, token, text]


def finish_reason(finish: Finish | None, tokens: int) -> dict[str, object] | None:
    """How a request ended, on the wire."""
    if finish is None:
        return None
    if finish.kind is FinishKind.STOP:
        return {"type": "stop", "matched": finish.matched}
    if finish.kind is FinishKind.LENGTH:
        return {"type": "length", "length": tokens}
    return {"type": "abort", "message": finish.message or "Aborted."}


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
