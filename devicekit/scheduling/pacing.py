"""How many prompt tokens a pass computes beside running requests, by how long passes were seen to take.

A prompt that is computed in large pieces is done sooner, and everybody who runs waits longer for each token
meanwhile. How much longer depends on the model and the device, so it is measured and not assumed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import combinations
from statistics import median

_FIRST = 64  # tokens, before anything was measured
_LEAST = 32  # tokens: prompts go on, however slow they are
_REMEMBERED = 3  # passes without prompts, whose median one that was held up for other reasons does not move
_UNTIL_MEASURED = 32  # passes with prompts, after which one without is due
_FORGETS = 1.1  # how much longer than before a pass may seem to take, by one that was held up
_AIM = 0.7  # of the time that prompts may take: what is measured scatters


@dataclass(frozen=True, slots=True)
class _Pass:
    began: float  # seconds of the clock
    tokens: int  # of prompts


class PromptPace:
    """Chooses the prompt tokens of passes in which requests run, so that these wait at most so much longer.

    It follows what it sees from pass to pass, at most halving or doubling: one pass that was held up for another
    reason does not matter. Times are of the clock of whoever plans, from one plan to the next, which is what
    running requests wait for a token. Ranks whose clock is one therefore plan alike.

    Args:
        slowdown: how many times as long as without prompts a pass may take; above 1.
    """

    def __init__(self, slowdown: float) -> None:
        self._share = (slowdown - 1) * _AIM  # of a pass without prompts, which those may take beside it
        self._without: deque[float] = deque(maxlen=_REMEMBERED)  # seconds of such passes
        self._since = 0  # passes with prompts since the last one
        self._tokens = _FIRST
        self._last: _Pass | None = None
        self._beside: dict[
            int, tuple[int, float]
        ] = {}  # tokens and what they took, for each power of two of them

    def tokens(self, now: float, most: int) -> int:
        """Prompt tokens of the pass that is planned now, beside running requests: at most ``most``; may be 0."""
        self._see(now, most)
        if self._since >= _UNTIL_MEASURED or (self._since and not self._without):
            return 0
        return min(self._tokens, most)

    def planned(self, now: float, tokens: int) -> None:
        """Note a pass with so many prompt tokens that begins now, in which requests run."""
        self._last = _Pass(now, tokens)

    def interrupted(self) -> None:
        """Do not measure the last pass: the next one does not follow it at once, or does nobody hold up."""
        self._last = None

    def _see(self, now: float, most: int) -> None:
        last, self._last = self._last, None
        if last is None:
            return
        seconds = now - last.began
        if not last.tokens:
            self._without.append(seconds)
            self._since = 0
            return
        self._since += 1
        if not self._without:
            return
        usual = median(self._without)
        beside = max(seconds - usual, 0.0)
        self._note(last.tokens, beside)
        allowed = self._allowed(usual * self._share)
        fitting = int(last.tokens * allowed / beside) if beside else most
        if beside > allowed:
            if last.tokens >= _LEAST:  # what fewer cost is not theirs
                self._tokens = max(_LEAST, self._tokens // 2, min(fitting, self._tokens))
        elif 2 * last.tokens >= self._tokens:  # much fewer say nothing of how many there may be
            self._tokens = min(max(fitting, self._tokens), 2 * self._tokens, most)

    def _note(self, tokens: int, seconds: float) -> None:
        if tokens < _LEAST:  # the last of a prompt, as a rule; they say little
            return
        size = tokens.bit_length()
        _, before = self._beside.get(size, (0, seconds))
        self._beside[size] = tokens, min(seconds, before * _FORGETS)

    def _allowed(self, wanted: float) -> float:
        """Seconds that prompts may take: what is wanted, unless any prompt takes longer, however short it is.

        Then fewer tokens save little, and they may take as much again as cannot be saved.
        """
        seen = sorted(self._beside.values())
        least = min((seconds for _, seconds in seen), default=0.0)
        if least <= wanted or len(seen) < 2:
            return wanted
        # Where lines through two of them begin; the median, so that one that was held up does not matter.
        begins = [
            short - few * (long - short) / (many - few)
            for (few, short), (many, long) in combinations(seen, 2)
        ]
        return max(wanted, 2 * min(median(begins), least))
