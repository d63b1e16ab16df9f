"""The text of one request's output: decoded once, cut at its stop strings, and given out once it is final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devicekit.text.decoding import TokenDecoder
from devicekit.text.stops import StopMatcher, StopStrings
from devicekit.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a request wants its text."""

    stop: tuple[str, ...] = ()
    min_tokens: int = 0  # the text of earlier tokens is not searched for stop strings
    keep_stop: bool = False  # leave what stopped the output in its text
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


class RequestText:
    """Grows by `push`, ends by `end`, and is read by `take` as far as it is final.

    Args:
        prompt: its last tokens are the context of the first output token.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], options: TextOptions) -> None:
        self._decoder = TokenDecoder(
            vocabulary,
            prompt,
            skip_special_tokens=options.skip_special_tokens,
            spaces=options.spaces_between_special_tokens,
        )
        self._options = options
        self._matcher = StopMatcher(StopStrings.compiled(options.stop)) if options.stop else None
        self._first = 0  # character at which the search begins
        self._ends: list[int] = []  # after each token: characters of the text, before anything was cut
        self._length = 0
        self._pending = ""  # decoded and not taken
        self._taken = 0
        self._ended = False
        self.stopped: str | None = None  # the stop string that was found

    # -- Growing ----------------------------------------------------------------------------------------------

    def push(self, token: int) -> str | None:
        """Add a token; returns the stop string that is found by now, if any."""
        self._grow(self._decoder.push(token), len(self._ends) + 1)
        self._ends.append(self._length)
        return self.stopped

    def extend(self, tokens: Sequence[int], *, each: bool = False) -> str | None:
        """Add many tokens; returns the stop string that is found by now, if any.

        Args:
            each: `offsets` and `settled` will be asked of single ones among them. Otherwise they are decoded
                together, which takes a fraction of the time.
        """
        if each or len(tokens) < 2:
            for token in tokens:
                self.push(token)
            return self.stopped
        early = 0 if self._matcher is None else max(0, self._options.min_tokens - 1 - len(self._ends))
        for part in (tokens[:early], tokens[early:]):
            if part:
                self._grow(self._decoder.all(part), len(self._ends) + len(part))
                self._ends += [self._length] * len(part)
        return self.stopped

    def end(self, *, hide_last: bool = False, searched: bool = True) -> str | None:
        """No token comes any more.

        Args:
            hide_last: a last token, not pushed, ended the output and is no part of its text.
            searched: the text came to its own end; false for one that was broken off.

        Returns:
            The stop string that is found now that the text is whole.
        """
        if self._ended:
            return self.stopped
        self._grow(self._decoder.end(), len(self._ends))
        if hide_last:
            self._ends.append(self._length)
        self._ended = True
        if searched and self.stopped is None and self._matcher is not None and self._matcher.end():
            self._cut(self._matcher)
        return self.stopped

    # -- Reading ----------------------------------------------------------------------------------------------

    @property
    def pushed(self) -> int:
        """Tokens that were added so far."""
        return len(self._ends)

    @property
    def ended(self) -> bool:
        """Whether no token comes any more."""
        return self._ended

    @property
    def undecided(self) -> bool:
        """Whether a stop string was found that the next token may make a longer one."""
        return self._matcher is not None and self._matcher.undecided

    @property
    def holds(self) -> bool:
        """Whether any text is kept from `take` because it may become a part of a stop string."""
        return self._matcher is not None and self.stopped is None and self._matcher.held > 0

    @property
    def ready(self) -> bool:
        """Whether there is text to `take`."""
        return self._free > 0

    def take(self) -> str:
        """The text that has become final since the last call."""
        size = self._free
        text, self._pending = self._pending[:size], self._pending[size:]
        self._taken += size
        return text

    def settled(self, tokens: int) -> int:
        """How many of the first ``tokens`` tokens have only text that is final."""
        ends, free = self._ends, self._taken + self._free
        while tokens and ends[tokens - 1] > free:
            tokens -= 1
        return tokens

    def offsets(self, first: int, last: int) -> tuple[int, ...]:
        """Where in the text tokens ``first`` to ``last - 1`` begin; none behind what was taken."""
        ends = self._ends
        return tuple(min(ends[at - 1] if at else 0, self._taken) for at in range(first, last))

    # -- Parts ------------------------------------------------------------------------------------------------

    @property
    def _free(self) -> int:
        """Characters that are decoded, not taken, and no part of what may become a stop string."""
        size = len(self._pending)
        if self._matcher is not None and self.stopped is None and not self._ended:
            size -= self._matcher.held
        return size

    def _grow(self, text: str, tokens: int) -> None:
        if self.stopped is not None:
            return
        self._pending += text
        self._length += len(text)
        matcher = self._matcher
        if matcher is None:
            return
        if tokens < self._options.min_tokens:
            self._first = self._length
        elif matcher.feed(text):
            self._cut(matcher)

    def _cut(self, matcher: StopMatcher) -> None:
        """Remove the stop string, and what came after it, from the text."""
        begin, size = matcher.found or (0, 0)
        at = self._first + begin - self._taken  # never before what was taken: that much was held back
        self.stopped = self._pending[at : at + size]
        self._pending = self._pending[: at + size if self._options.keep_stop else at]
