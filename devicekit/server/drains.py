"""Whether requests are turned away because an operator drains the engine, or has drained it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from devicekit.scheduling.messages import DrainReply
from devicekit.server.snapshot import Snapshot

DRAINING, DRAINED = "draining", "drained"
_REASONS = {
    DRAINED: "The engine is drained: no new requests are taken until POST /continue_generation.",
    DRAINING: "The engine is draining: no new requests are taken.",
}


class Drains:
    """The drains that operators asked for.

    Whoever pauses means to continue, so requests wait. Whoever drains means to take the engine away, so new
    requests had better be sent elsewhere.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._under_way = 0
        self._epoch: int | None = None  # of the pause that the last one ended in

    @contextmanager
    def draining(self) -> Iterator[Callable[[DrainReply], None]]:
        """A block in which a drain is carried out. It gives a function that takes the answer."""
        self._under_way += 1
        try:
            yield self._answered
        finally:
            self._under_way -= 1

    def _answered(self, reply: DrainReply) -> None:
        if reply.success:
            self._epoch = reply.epoch

    @property
    def word(self) -> str:
        """``drained``, ``draining``, or nothing."""
        # However that pause ends, the epoch is another then.
        if self._epoch is not None and self._snapshot().epoch == self._epoch:
            return DRAINED
        return DRAINING if self._under_way else ""

    @property
    def reason(self) -> str:
        """Why new requests are turned away; empty while they are taken."""
        return _REASONS.get(self.word, "")
