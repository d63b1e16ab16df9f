"""Looks at the engines that all who ask at the same time share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from devicekit.fleet.outcomes import MemberView


class Look:
    """Asks every engine what it says of itself, once for however many want to know.

    Probes need no key. Each of them would ask all engines, and those that are silent would hold up the verbs,
    take their turn among all calls.

    Args:
        look: asks them.
    """

    def __init__(self, look: Callable[[], Awaitable[list[MemberView]]]) -> None:
        self._look = look
        self._present: asyncio.Future[list[MemberView]] | None = None
        self._next: asyncio.Future[list[MemberView]] | None = None

    async def shared(self) -> list[MemberView]:
        """What the engines say now: in a look that begins after this was called.

        Raises:
            Exception: what the look raised.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._present))
            self._next.add_done_callback(_seen)
        return await asyncio.shield(self._next)

    async def _after(self, present: asyncio.Future[list[MemberView]] | None) -> list[MemberView]:
        if present is not None:
            await asyncio.wait((present,))
        self._present, self._next = self._next, None
        return await self._look()


def _seen(look: asyncio.Future[list[MemberView]]) -> None:
    """Whoever asked may be gone: then nobody else looks at the error."""
    if not look.cancelled():
        look.exception()
