"""What ``/v1/completions`` and ``/v1/chat/completions`` have in common: parameters, ends, usage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from devicekit.engine import Generation
from devicekit.runners.errors import MissingTokenizer
from devicekit.scheduling.request import Finish, FinishKind, SamplingParams, TokenLogprob
from devicekit.server.endpoints import Arguments, Finite, Label
from devicekit.server.errors import BadRequest
from devicekit.server.sampling import MAX_SEQUENCES, LogitBias, SamplingArguments, Seed, TokenIds
from devicekit.server.serving import Serving

# Parameters that have the same name in `SamplingArguments`.
_SHARED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "no_stop_trim",
)
_NO_LOGPROB = -9999.0  # what this API says of a token that had no chance


class StreamOptions(Arguments):
    """``stream_options``."""

    include_usage: bool | None = None


class OpenAIArguments(Arguments):
    """What both endpoints read."""

    model: str | None = Field(
        None, description="any name is taken; the answer names the model that is served"
    )
    temperature: Finite | None = None
    top_p: Finite | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    logit_bias: LogitBias | None = None
    # Beyond the original.
    rid: Label | None = None
    priority: int | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Finite | None = None
    min_tokens: int | None = None
    repetition_penalty: Finite | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's parameters.

        Raises:
            BadRequest: something was asked for that this engine cannot do.
        """
        shared = {name: getattr(self, name) for name in _SHARED}
        arguments = SamplingArguments(
            max_new_tokens=max_tokens, min_new_tokens=self.min_tokens, sampling_seed=self.seed, **shared
        )
        return arguments.params(logprobs)

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def need_tokenizer(serving: Serving) -> None:
    """Raises MissingTokenizer: answers here are text."""
    if serving.engine.tokenizer is None:
        raise MissingTokenizer(
            "This model has no tokenizer, and answers here are text; use /generate with input_ids."
        )


def finish_name(finish: Finish | None) -> str | None:
    """How a sequence ended, in this API's words."""
    return None if finish is None else finish.kind.value


def matched_stop(finish: Finish | None) -> int | str | None:
    """Which stop condition was met."""
    return None if finish is None else finish.matched


def usage(generations: Sequence[Generation], prompts: int) -> dict[str, object]:
    """Token counts; each prompt counts once, however many sequences it has."""
    each = len(generations) // prompts
    prompt = sum(one.prompt_tokens for one in generations[::each])
    output = sum(len(one.tokens) for one in generations)
    cached = sum(one.cached_tokens for one in generations[::each])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def token_text(serving: Serving, token: int) -> str:
    """The text of one token."""
    tokenizer = serving.engine.tokenizer
    if tokenizer is None:
        raise BadRequest("This model has no tokenizer.")
    text: str = tokenizer.decode([token])
    return text


def finite(logprob: float) -> float:
    """A log-probability that JSON can carry."""
    return logprob if math.isfinite(logprob) else _NO_LOGPROB


def top_pairs(serving: Serving, one: TokenLogprob) -> list[tuple[str, float]]:
    """Text and log-probability of a token's alternatives."""
    return [(token_text(serving, token), finite(value)) for token, value in one.top]


def failed(finish: Finish | None) -> bool:
    """Whether the engine could not serve a sequence."""
    return finish is not None and finish.kind is FinishKind.ERROR
