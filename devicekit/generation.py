"""What a caller holds of a request: its tokens and text as they come, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from devicekit.scheduling.messages import Output
from devicekit.scheduling.request import Finish, TokenLogprob, VersionSpan
from devicekit.scheduling.stopping import Detokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for bytes that are not yet a character


class IncrementalText:
    """Text of a growing list of tokens, of which what was given out never changes."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._tokens: list[int] = []
        self._settled = 0  # tokens whose text is final; decoding starts there, for the sake of leading spaces
        self._given = 0  # tokens whose text was given out

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """The text that these tokens add; an unfinished character is kept for the next call."""
        self._tokens += tokens
        before = self._detokenizer.decode(self._tokens[self._settled : self._given])
        after = self._detokenizer.decode(self._tokens[self._settled :])
        if not last and after.endswith(_REPLACEMENT):
            return ""
        self._settled, self._given = self._given, len(self._tokens)
        return after[len(before) :]


@dataclass(slots=True, eq=False)
class Generation:
    """One request's result, filled in while the engine steps."""

    id: str
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    cached_tokens: int = 0  # of the prompt, not computed because they were cached
    retractions: int = 0
    spans: tuple[VersionSpan, ...] = ()  # which weights made which output tokens
    logprobs: list[TokenLogprob] = field(default_factory=list)
    decoder: IncrementalText | None = None  # None: no text
    keep_stop: bool = False  # leave what stopped the output in its text

    @property
    def done(self) -> bool:
        return self.finish is not None

    def receive(self, output: Output) -> str:
        """Take in an output; returns the text it added."""
        self.tokens += output.tokens
        self.finish = output.finish
        self.cached_tokens = output.cached_tokens
        self.retractions = output.retractions
        self.spans = output.spans
        self.logprobs += output.logprobs
        return self._add_text(output.tokens)

    def _add_text(self, tokens: Sequence[int]) -> str:
        if self.decoder is None:
            return ""
        matched = self.finish.matched if self.finish is not None and not self.keep_stop else None
        if isinstance(matched, int) and tokens and tokens[-1] == matched:
            tokens = tokens[:-1]
        before = len(self.text)
        self.text += self.decoder.add(tokens, last=self.done)
        if isinstance(matched, str):
            # Never before what was already given out: the scheduler held back what could be a stop string.
            at = self.text.find(matched, max(0, before - len(matched)))
            self.text = self.text if at < 0 else self.text[:at]
        return self.text[before:]
