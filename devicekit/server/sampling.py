"""Sampling parameters as clients send them, in SGLang's names."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from devicekit.scheduling.request import SamplingParams
from devicekit.server.endpoints import Finite
from devicekit.server.structured import GrammarArguments

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
LogitBias = Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Finite], Field(max_length=8192)]
StopText = Annotated[str, Field(max_length=1024)]
# Bounded, since each is looked for in every token's text.
StopTexts = StopText | Annotated[list[StopText], Field(max_length=256)]
TokenIds = Annotated[list[int], Field(max_length=1024)]
MAX_SEQUENCES = 128  # per prompt

# Parameters that have the same name, and the same meaning of null, here and in the engine.
_SAME = (
    *("max_new_tokens", "temperature", "top_p", "min_p", "min_new_tokens", "frequency_penalty"),
    *("presence_penalty", "repetition_penalty", "skip_special_tokens", "spaces_between_special_tokens"),
)


class SamplingArguments(GrammarArguments):
    """``sampling_params``. ``None`` is the same as not given."""

    max_new_tokens: int | None = None
    temperature: Finite | None = None
    top_p: Finite | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(
        default=None, description="-1 or 0: no limit"
    )
    min_p: Finite | None = None
    stop: StopTexts | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(
        default=None, description="leave them out of the text; default: true"
    )
    spaces_between_special_tokens: bool | None = Field(
        default=None, description="where special tokens are shown and the tokenizer puts any; default: true"
    )
    no_stop_trim: bool | None = Field(default=None, description="keep what stopped the output in its text")
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    sampling_seed: Seed | None = None
    min_new_tokens: int | None = Field(default=None, description="until then nothing stops the output")
    frequency_penalty: Finite | None = Field(
        default=None, description="-2 to 2, for each time that a token has come up in the output"
    )
    presence_penalty: Finite | None = Field(
        default=None, description="-2 to 2, once a token has come up in the output"
    )
    repetition_penalty: Finite | None = Field(
        default=None, description="1: none; concerns tokens of the prompt and the output"
    )
    logit_bias: LogitBias | None = Field(default=None, description="token id: -100 to 100")

    def params(self, defaults: SamplingParams | None = None) -> SamplingParams:
        """The engine's parameters.

        Args:
            defaults: what holds where nothing was sent.

        Raises:
            BadRequest: something was asked for that cannot be had together.
        """
        given: dict[str, object] = {
            name: value for name in _SAME if (value := getattr(self, name)) is not None
        }
        if self.top_k is not None:
            given["top_k"] = max(0, self.top_k)
        return dataclasses.replace(
            defaults or SamplingParams(),
            **given,  # type: ignore[arg-type]  # of the same names and types
            seed=self.sampling_seed,
            stop=stop_strings(self.stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            keep_stop=bool(self.no_stop_trim),
            grammar=self.grammar(),
        )


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings; one that is empty stops nothing."""
    return tuple(filter(None, [stop] if isinstance(stop, str) else stop or ()))
