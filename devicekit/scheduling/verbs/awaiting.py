"""Waiting for an operation from within another: for verbs that are made of verbs."""

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
