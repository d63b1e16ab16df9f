"""What ``/v1/completions`` and ``/v1/chat/completions`` have in common: parameters, ends, usage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from devicekit.engine import Generation
from devicekit.runners.errors import MissingTokenizer
from devicekit.scheduling.request import Finish, SamplingParams
from devicekit.server.endpoints import Arguments, Finite, Label
from devicekit.server.generate import LogprobsMode, Priority
from devicekit.server.group import SequenceSpec, namespace_of
from devicekit.server.sampling import MAX_SEQUENCES, LogitBias, SamplingArguments, Seed, StopTexts, TokenIds
from devicekit.server.serving import Serving
from devicekit.server.structured import GrammarArguments, ResponseFormat, only, response_grammar
from devicekit.text import Grammar, Vocabulary

# Parameters that have the same name in `SamplingArguments`.
_SHARED = (
    *("temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("skip_special_tokens", "spaces_between_special_tokens"),
)


NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "prompt_logprobs": "echo"}
"""Of parameters that the engine calls by another name."""


class StreamOptions(Arguments):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        default=None, description="usage so far in every chunk, with include_usage"
    )


class OpenAIArguments(GrammarArguments):
    """What both endpoints read."""

    model: str | None = Field(
        default=None, description="any name is taken; the answer names the model that is served"
    )
    temperature: Finite | None = None
    top_p: Finite | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    stop: StopTexts | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    logit_bias: LogitBias | None = None
    response_format: ResponseFormat | None = None
    # Beyond the original.
    rid: Label | None = None
    request_id: Label | None = Field(default=None, description="as rid")
    priority: Priority = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Finite | None = None
    min_tokens: int | None = None
    repetition_penalty: Finite | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = Field(
        default=None, description="where special tokens are shown and the tokenizer puts any; default: true"
    )
    no_stop_trim: bool | None = None
    include_stop_str_in_output: bool | None = Field(default=None, description="as no_stop_trim")
    logprobs_mode: LogprobsMode | None = Field(default=None, description="as of /generate")
    return_token_ids: bool | None = Field(default=None, description="answer with token ids too")
    return_meta_info: bool | None = Field(default=None, description="answer with /generate's meta_info too")
    extra_key: Label | None = Field(default=None, description="share cached prefixes only with the same one")
    cache_salt: Label | None = Field(default=None, description="and with the same one of these")

    def sampling(
        self, serving: Serving, max_tokens: int | None, logprobs: int | None, more: Sequence[Grammar] = ()
    ) -> SamplingParams:
        """The engine's parameters.

        Args:
            more: further grammars that the output is to follow.

        Raises:
            BadRequest: something was asked for that cannot be had together.
        """
        shared = {name: getattr(self, name) for name in _SHARED}
        arguments = SamplingArguments(
            max_new_tokens=max_tokens,
            min_new_tokens=self.min_tokens,
            sampling_seed=self.seed,
            no_stop_trim=self.no_stop_trim or self.include_stop_str_in_output,
            **shared,
        )
        wanted = response_grammar(self.response_format)
        grammar = only([*self._asked(), *([wanted] if wanted is not None else []), *more])
        params = arguments.params(serving.sampling_defaults)
        mode = self.logprobs_mode or serving.settings.logprobs_mode
        return dataclasses.replace(params, logprobs=logprobs, raw_logprobs=mode == "raw", grammar=grammar)

    def spec(
        self, serving: Serving, tokens: Sequence[int], params: SamplingParams, suffix: str = ""
    ) -> SequenceSpec:
        """A sequence of this request."""
        rid = self.rid or self.request_id
        return SequenceSpec(
            tokens,
            params,
            priority=serving.priority(self.priority),
            namespace=namespace_of(self.extra_key, self.cache_salt),
            **({"id": f"{rid}{suffix}"} if rid else {}),
        )

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_always(self) -> bool:
        return bool(self.wants_usage and self.stream_options and self.stream_options.continuous_usage_stats)


def need_tokenizer(serving: Serving) -> Vocabulary:
    """The vocabulary; raises MissingTokenizer: answers here are text."""
    if serving.engine.vocabulary is None:
        raise MissingTokenizer(
            "This model has no tokenizer, and answers here are text; use /generate with input_ids."
        )
    return serving.engine.vocabulary


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
