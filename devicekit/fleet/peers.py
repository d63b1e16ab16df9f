"""Engines that have the fleet's weights, and give them to those that lack them: each to few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

_AT_ONCE = 2  # engines that read from one: who has the weights then gives them on


class Peers:
    """The engines that can be asked. An engine that has got the weights becomes one."""

    def __init__(self, names: Iterable[str]) -> None:
        self._reading = dict.fromkeys(names, 0)
        self._changed = asyncio.Condition()

    async def add(self, name: str) -> None:
        """Add an engine that has the weights now."""
        async with self._changed:
            self._reading.setdefault(name, 0)
            self._changed.notify_all()

    @asynccontextmanager
    async def one(self, without: Collection[str]) -> AsyncIterator[str | None]:
        """A block with an engine from which few read, once there is one; ``None``: all were tried.

        Args:
            without: those that were tried.
        """
        async with self._changed:
            while (name := self._least_asked(without)) is not None and self._reading[name] >= _AT_ONCE:
                await self._changed.wait()
            if name is not None:
                self._reading[name] += 1
        try:
            yield name
        finally:
            if name is not None:
                async with self._changed:
                    self._reading[name] -= 1
                    self._changed.notify_all()

    def _least_asked(self, without: Collection[str]) -> str | None:
        others = [one for one in self._reading if one not in without]
        return min(others, key=self._reading.__getitem__, default=None)
