"""How much of a request's possible output admission sets pages aside for.

Few requests use all of max_new_tokens, so reserving all of it wastes the pool, and reserving none of it ends in
retraction. The share reserved starts high, decays as steps go well, and jumps when a retraction shows that it was
too low. The constants are those SGLang's operators are used to.
"""

from __future__ import annotations

START = 0.7
FLOOR = 0.14  # of START
DECAY_STEPS = 600
LOOK_AHEAD = 20  # steps that a retraction wants to have room for


class NewTokenRatio:
    """The share of remaining output tokens that admission counts as used."""

    def __init__(self, conservativeness: float = 1.0) -> None:
        self._start = min(START * conservativeness, 1.0)
        self._floor = self._start * FLOOR
        self._decay = (self._start - self._floor) / DECAY_STEPS
        self.value = self._start

    def decay(self) -> None:
        """Lower the share a little, after a step that went well."""
        if self.value > self._floor:
            self.value = max(self.value - self._decay, self._floor)

    def retracted(self, decoded: int, remaining: int, requests: int) -> None:
        """Set the share after a retraction that left ``requests`` running."""
        total = decoded + remaining
        self.value = min(1.0, (decoded + LOOK_AHEAD * requests) / (total + 1))

    def reset(self) -> None:
        """Go back to the first share, when nothing runs."""
        self.value = self._start
