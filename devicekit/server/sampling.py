"""Sampling parameters as clients send them, in SGLang's names, and what of them cannot be honoured."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field

from devicekit.scheduling.request import SamplingParams
from devicekit.server.endpoints import Arguments, Finite
from devicekit.server.errors import BadRequest

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
LogitBias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Finite]
TokenIds = Annotated[list[int], Field(max_length=1024)]
MAX_SEQUENCES = 128  # per prompt


class SamplingArguments(Arguments):
    """``sampling_params``. ``None`` is the same as not given."""

    max_new_tokens: int | None = None
    temperature: Finite | None = None
    top_p: Finite | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(
        default=None, description="-1 or 0: no limit"
    )
    min_p: Finite | None = None
    stop: str | list[str] | None = None
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
    # Known, and cannot be honoured.
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    stop_regex: str | list[str] | None = None

    def params(self, logprobs: int | None) -> SamplingParams:
        """The engine's parameters.

        Raises:
            BadRequest: something was asked for that this engine cannot do.
        """
        self._refuse_unsupported()
        defaults = SamplingParams()
        return SamplingParams(
            max_new_tokens=_given(self.max_new_tokens, defaults.max_new_tokens),
            temperature=_given(self.temperature, defaults.temperature),
            top_k=max(0, _given(self.top_k, defaults.top_k)),
            top_p=_given(self.top_p, defaults.top_p),
            min_p=_given(self.min_p, defaults.min_p),
            seed=self.sampling_seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            min_new_tokens=_given(self.min_new_tokens, defaults.min_new_tokens),
            frequency_penalty=_given(self.frequency_penalty, defaults.frequency_penalty),
            presence_penalty=_given(self.presence_penalty, defaults.presence_penalty),
            repetition_penalty=_given(self.repetition_penalty, defaults.repetition_penalty),
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            logprobs=logprobs,
            skip_special_tokens=_given(self.skip_special_tokens, defaults.skip_special_tokens),
            spaces_between_special_tokens=_given(
                self.spaces_between_special_tokens, defaults.spaces_between_special_tokens
            ),
            keep_stop=bool(self.no_stop_trim),
        )

    def _refuse_unsupported(self) -> None:
        constraints = ("json_schema", "regex", "ebnf", "structural_tag", "stop_regex")
        asked = [name for name in constraints if getattr(self, name)]
        if asked:
            raise BadRequest(f"This engine does not support {', '.join(asked)}.")


_T = TypeVar("_T")


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value
