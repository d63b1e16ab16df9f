"""Verbs that wait, written as generators that are made of other verbs."""

from __future__ import annotations

from collections.abc import Callable, Generator

from devicekit.scheduling.messages import Reply


def awaited(answer: Reply | Callable[[], Reply | None]) -> Generator[None, None, Reply]:
    """Wait for a reply: ask for it once each time that the generator is resumed."""
    while not isinstance(answer, Reply):
        reply = answer()
        if reply is not None:
            return reply
        yield
    return answer


def polled(run: Generator[None, None, Reply]) -> Callable[[], Reply | None]:
    """A function that runs a verb until it has to wait, at each call; when the verb ends it returns the reply."""

    def poll() -> Reply | None:
        try:
            next(run)
        except StopIteration as end:
            reply: Reply = end.value
            return reply
        return None

    return poll
