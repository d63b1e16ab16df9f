"""Verbs that wait: written as generators, and made of other verbs."""

from __future__ import annotations

from collections.abc import Callable, Generator

from devicekit.scheduling.messages import Reply


def awaited(answer: Reply | Callable[[], Reply | None]) -> Generator[None, None, Reply]:
    """Ask, once at each turn, until there is a reply."""
    while not isinstance(answer, Reply):
        reply = answer()
        if reply is not None:
            return reply
        yield
    return answer


def polled(run: Generator[None, None, Reply]) -> Callable[[], Reply | None]:
    """What takes a verb as far as it comes, each time it is asked, and has its reply at the end."""

    def poll() -> Reply | None:
        try:
            next(run)
        except StopIteration as end:
            reply: Reply = end.value
            return reply
        return None

    return poll
