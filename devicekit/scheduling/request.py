"""A generation request: what the user asked for, and how far it has come."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from devicekit.memory.prefix_node import Node
from devicekit.scheduling.batch import Int32, ModelLimits
from devicekit.scheduling.errors import InvalidRequest
from devicekit.text import Grammar, GrammarMatcher, RequestText, TextOptions

_OWN_NAMES: Mapping[str, str] = MappingProxyType({})
_HOTTEST = 1e6  # every token is as likely as any other long before that


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn and when to stop."""

    max_new_tokens: int = 128  # 0: the prompt is computed, and cached, and that is all
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None  # None: the request's own, which an engine draws anew for each
    stop: tuple[str, ...] = ()  # text that ends the output and is cut from it; needs a tokenizer
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_new_tokens: int = 0  # until then nothing stops the output
    # What is done to logits before a token is chosen. Counts are of the output alone.
    frequency_penalty: float = 0.0  # taken off a token's logit each time it has come up
    presence_penalty: float = 0.0  # taken off once it has come up at all
    repetition_penalty: float = 1.0  # divides a positive logit, multiplies others; of the prompt's tokens too
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to tokens' logits
    logprobs: int | None = None  # how many alternatives to report per token; 0: the chosen one only
    logprob_ids: tuple[int, ...] = ()  # further tokens to report at each position
    raw_logprobs: bool = False  # of the model's own distribution, not of the one that tokens are drawn from
    # Prompt token from which on log-probabilities are reported; None: of none.
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None  # what the output must follow; needs a tokenizer and the extra "grammar"
    # How its text is made.
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True  # where special tokens are shown and the tokenizer puts any
    keep_stop: bool = False  # leave what stopped the output in its text

    @property
    def text_options(self) -> TextOptions:
        """How the text is made."""
        return TextOptions(
            self.stop,
            self.min_new_tokens,
            self.keep_stop,
            self.skip_special_tokens,
            self.spaces_between_special_tokens,
        )

    @property
    def adjusts(self) -> bool:
        """Whether anything is to be done to logits."""
        return bool(
            self.min_new_tokens
            or self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1
            or self.logit_bias
        )

    def problems(self, limits: ModelLimits, names: Mapping[str, str] = _OWN_NAMES) -> list[str]:
        """Everything that is wrong with these parameters for this model.

        Args:
            names: of parameters that whoever reads this knows by another name.
        """
        found: list[str] = []

        def say(name: str) -> str:
            return names.get(name, name)

        if self.max_new_tokens < 0:
            found.append(f"{say('max_new_tokens')} must be 0 or more, not {self.max_new_tokens}")
        if not 0 <= self.temperature <= _HOTTEST:
            found.append(f"temperature must be from 0 to {_HOTTEST:g}, not {self.temperature}")
        if self.top_k < 0:
            found.append(f"top_k must be 0 or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p must be from 0 to 1, not {self.min_p}")
        if self.logprobs is not None and not 0 <= self.logprobs <= limits.vocab_size:
            found.append(f"{say('logprobs')} must be from 0 to {limits.vocab_size}, not {self.logprobs}")
        if self.grammar is not None and self.min_new_tokens:
            found.append(
                f"{say('min_new_tokens')} cannot be had with a grammar, which says when an output is complete"
            )
        if self.prompt_logprobs is not None and self.prompt_logprobs < 0:
            found.append(f"{say('prompt_logprobs')} must be 0 or more, not {self.prompt_logprobs}")
        if self.logprobs is None and (self.logprob_ids or self.prompt_logprobs is not None):
            found.append(f"{say('logprob_ids')} and {say('prompt_logprobs')} need {say('logprobs')}")
        foreign = [token for token in self.logprob_ids if not 0 <= token < limits.vocab_size]
        if foreign:
            found.append(
                f"{say('logprob_ids')} {foreign[:8]} are outside the vocabulary of {limits.vocab_size}"
            )
        if "" in self.stop:
            found.append("a stop string must not be empty")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            found.append(f"{say('seed')} must fit 64 bits, and {self.seed} does not")
        if self.stop_token_ids:
            foreign = [token for token in self.stop_token_ids if not 0 <= token < limits.vocab_size]
            if foreign:
                found.append(f"stop_token_ids {foreign} are outside the vocabulary of {limits.vocab_size}")
        if self.adjusts:
            found += self._adjustment_problems(limits, say)
        return found

    def _adjustment_problems(self, limits: ModelLimits, say: Callable[[str], str]) -> list[str]:
        found: list[str] = []
        if not 0 <= self.min_new_tokens <= max(0, self.max_new_tokens):
            found.append(
                f"{say('min_new_tokens')} must be from 0 to {say('max_new_tokens')}, not {self.min_new_tokens}"
            )
        if not -2 <= self.frequency_penalty <= 2:
            found.append(f"frequency_penalty must be from -2 to 2, not {self.frequency_penalty}")
        if not -2 <= self.presence_penalty <= 2:
            found.append(f"presence_penalty must be from -2 to 2, not {self.presence_penalty}")
        if not 0.01 <= self.repetition_penalty <= 100:
            found.append(f"repetition_penalty must be from 0.01 to 100, not {self.repetition_penalty}")
        tokens = [token for token, _ in self.logit_bias]
        foreign = [token for token in tokens if not 0 <= token < limits.vocab_size]
        if foreign:
            found.append(
                f"logit_bias has tokens {foreign[:8]}, outside the vocabulary of {limits.vocab_size}"
            )
        if len(set(tokens)) < len(tokens):
            found.append("logit_bias has a token twice")
        if wild := [bias for _, bias in self.logit_bias if not -100 <= bias <= 100]:
            found.append(f"logit_bias must be from -100 to 100, not {wild[0]}")
        if self.min_new_tokens and len({*self.stop_token_ids, *limits.eos_token_ids}) >= limits.vocab_size:
            found.append(f"{say('min_new_tokens')} leaves no token, as every one of them stops the output")
        return found


class FinishKind(str, enum.Enum):
    """Why a request ended."""

    STOP = "stop"  # eos, a stop token or a stop string
    LENGTH = "length"
    ABORT = "abort"  # by the user, a deadline, a pause, or an operator
    ERROR = "error"  # the engine could not serve it


class Finish(NamedTuple):
    """How a request ended."""

    kind: FinishKind
    matched: int | str | None = None  # the token or text that stopped it
    message: str = ""  # abort and error: what happened
    refused: bool = False  # error: what was asked for cannot be done; the engine is sound


class VersionSpan(NamedTuple):
    """Which weights made the output tokens ``start`` to ``end - 1``."""

    version: str
    start: int
    end: int


class Times(NamedTuple):
    """How long a request took, in seconds since its arrival; ``None``: it did not come to that."""

    queued: float | None  # until it was first computed
    first_token: float | None
    total: float


class TokenLogprob(NamedTuple):
    """Log-probability of one token, of the best ones at its place, and of those asked for (natural logarithm).

    NaN: the logits there were no numbers.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    picked: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class WaitsForPrompt:
    """How long a request has waited for prompts that are being computed, counted in starts of requests."""

    first: int  # starts there had been when it began to wait
    last: int  # and when more of it was last found cached
    cached: int  # tokens that were, then


@dataclass(slots=True, eq=False)
class Request:
    """One sequence to complete.

    Args:
        id: unique among the requests that are not finished.
        prompt: token ids, at least one.
        priority: higher runs first under the priority policy.
        timeout: seconds after arrival at which the request is aborted.
        stream: report tokens as they come, not only at the end.
        namespace: prompts share cached prefixes only within a namespace (tenant, adapter).
    """

    id: str
    prompt: Int32
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    timeout: float | None = None
    stream: bool = False
    namespace: Hashable = None

    # Kept by the scheduler.
    checked: object = field(default=None, repr=False)  # the mark of whoever found nothing wrong with it
    arrival: int = 0  # order of arrival
    begun: int = 0  # order of starts
    waits: WaitsForPrompt | None = None  # for another that computes what they share
    arrived: float | None = None  # the clock's seconds, as the following
    started: float | None = None  # first computed
    answered: float | None = None  # first token
    deadline: float | None = None  # the clock's seconds
    seed: int | None = None  # unless its parameters have one; None: derived from its id
    max_total_tokens: int = 0  # tokens, prompt included, at which the output is long enough
    tokens: Int32 = field(init=False)  # prompt and output, while it waits
    row: int = 0  # 0: holds no KV
    computed: int = 0  # leading tokens whose keys and values are in the pool
    total: int = 0  # tokens, prompt and output, that are known
    num_pages: int = 0  # pages in its row, cached ones included
    cached_pages: int = 0  # leading pages of its row that belong to the prefix cache
    dropped_pages: int = 0  # leading pages of its row that were given back: out of every layer's window
    last_node: Node | None = None  # its place in the prefix cache, locked
    cache_namespace: Hashable = None  # the prefix cache's namespace in which that is
    no_prefix_sharing: bool = False  # its KV mixes weight versions: nobody else may use it
    needs_every_step: bool = False  # it costs something in every step, beyond its place in the batch
    cached_tokens: int = 0  # prompt tokens that its first run did not have to compute
    column: int = -1  # in the running batch
    retractions: int = 0
    reported: int = 0  # output tokens already streamed
    spans: tuple[VersionSpan, ...] = ()
    logprobs: list[TokenLogprob] | None = None  # not reported yet
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)  # not reported yet
    scored: int | None = None  # the next prompt token whose follower is to be scored; None: none is
    invalid_logits: int = 0  # tokens that were drawn from logits that are no numbers
    matcher: GrammarMatcher | None = None  # how far its output has come in its grammar
    # Made here if stop strings are looked for in it, and otherwise by whoever reads the tokens.
    text: RequestText | None = None

    def __post_init__(self) -> None:
        self.prompt = np.ascontiguousarray(self.prompt, dtype=np.int32)
        self.tokens = self.prompt
        self.total = len(self.prompt)
        self.scored = self.params.prompt_logprobs

    @property
    def reusable(self) -> int:
        """Leading tokens whose KV may come from a cache: the last one is computed, and what is to be scored."""
        if self.scored is None or self.scored >= len(self.prompt) - 1:
            return self.total - 1
        return min(self.total - 1, self.scored)

    @property
    def num_output(self) -> int:
        return self.total - len(self.prompt)


def default_seed(identity: str) -> int:
    """The seed of a request that was given none: the same for the same id, on every machine."""
    return zlib.crc32(identity.encode())


def prompt_array(tokens: Sequence[int] | Int32) -> Int32:
    """Token ids as the scheduler keeps them.

    Raises:
        InvalidRequest: they are not a flat list of integers.
    """
    try:
        found = np.asarray(tokens)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"A prompt is a flat list of token ids: {error}") from error
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise InvalidRequest(f"A prompt is a flat list of token ids, not {tokens!r:.80}.")
    bounds = np.iinfo(np.int32)
    if len(found) and not bounds.min <= int(found.min()) <= int(found.max()) <= bounds.max:
        raise InvalidRequest("A prompt has token ids that do not fit 32 bits.")
    return found.astype(np.int32)
