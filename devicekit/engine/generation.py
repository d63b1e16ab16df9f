"""A request as its caller sees it: tokens and text as they come, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from devicekit.scheduling.messages import Output
from devicekit.scheduling.request import Finish, FinishKind, TokenLogprob, VersionSpan
from devicekit.text import RequestText, TokenDecoder
from devicekit.text.vocabulary import Decodes, Vocabulary, vocabulary_of


class IncrementalText:
    """The text of a growing list of tokens. Text that was given out never changes."""

    def __init__(self, detokenizer: Vocabulary | Decodes) -> None:
        self._decoder = TokenDecoder(vocabulary_of(detokenizer))

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens add; an unfinished character is kept for the next call."""
        text = self._decoder.all(tokens)
        return text + self._decoder.end() if last else text


@dataclass(slots=True, eq=False)
class Generation:
    """One request's result, filled in while the engine steps."""

    id: str
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    gained: int = 0  # tokens of the last output
    finish: Finish | None = None
    cached_tokens: int = 0  # of the prompt, not computed because they were cached
    retractions: int = 0
    spans: tuple[VersionSpan, ...] = ()  # which weights made which output tokens
    logprobs: list[TokenLogprob] = field(default_factory=list)
    # Of the prompt's tokens behind the first one asked for.
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    invalid_logits: int = 0  # tokens that were drawn from logits that are no numbers
    # Makes the text where the scheduler does not; None: it does, or there is none.
    maker: RequestText | None = None
    keep_stop: bool = False  # leave what stopped the output in its text
    # Where in the text each token with a log-probability begins.
    offsets: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.finish is not None

    @property
    def completed(self) -> bool:
        """Whether the output is complete: the request was not aborted and did not fail."""
        return self.finish is not None and self.finish.kind in (FinishKind.STOP, FinishKind.LENGTH)

    def receive(self, output: Output) -> str:
        """Take in an output; returns the text it added."""
        self.tokens += output.tokens
        self.gained = len(output.tokens)
        self.finish = output.finish
        self.cached_tokens = output.cached_tokens
        self.retractions = output.retractions
        self.spans = output.spans
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.invalid_logits = output.invalid_logits
        text, offsets = output.text, output.offsets
        if text is None:
            text, offsets = self._make(output)
        self.text += text
        self.offsets += offsets
        return text

    def _make(self, output: Output) -> tuple[str, tuple[int, ...]]:
        """The text of an output's tokens, and where they begin."""
        maker, tokens = self.maker, output.tokens
        if maker is None:
            return "", ()
        matched = self.finish.matched if self.finish is not None and not self.keep_stop else None
        hidden = isinstance(matched, int) and bool(tokens) and tokens[-1] == matched
        maker.extend(tokens[:-1] if hidden else tokens, each=bool(output.logprobs))
        if self.done:
            maker.end(hide_last=hidden)
        text = maker.take()
        return text, maker.offsets(
            len(self.tokens) - len(tokens), len(self.tokens)
        ) if output.logprobs else ()
