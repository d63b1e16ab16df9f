"""Which replicas there are: each announces itself again and again, until Ray says that it is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayActorError

from devicekit.fleet import UnknownMembers

_PATIENCE = 120.0  # seconds without a word after which a replica is gone of which nothing else is known
_LOOK = 2.0  # seconds for Ray to say that an actor is dead


class Registry:
    """The replicas of an application: a `MemberSource` of its fleet."""

    def __init__(self, known: Iterable[str]) -> None:
        """``known``: replicas that an earlier process was told of."""
        now = time.monotonic()
        self._heard: dict[str, float] = dict.fromkeys(known, now)
        self._actors: dict[str, Any] = {}

    def heard(self, url: str, actor: Any) -> None:
        """Record a replica that has announced itself."""
        self._heard[url] = time.monotonic()
        self._actors[url] = actor

    def left(self, url: str) -> None:
        """Record that a replica ends."""
        self._heard.pop(url, None)
        self._actors.pop(url, None)

    async def members(self) -> tuple[str, ...]:
        urls = list(self._heard)
        gone = await asyncio.gather(*(self._gone(url) for url in urls))
        for url, is_gone in zip(urls, gone, strict=True):
            if is_gone:
                self.left(url)
        if not self._heard:
            raise UnknownMembers("No replica has said yet that it is there.")
        return tuple(sorted(self._heard))

    async def _gone(self, url: str) -> bool:
        silent = time.monotonic() - self._heard[url]
        actor = self._actors.get(url)
        if actor is None:
            return silent > _PATIENCE
        if silent < 2 * BEAT:
            return False
        try:
            # A replica that lives and does not answer is expected still: it may serve again at any moment.
            await asyncio.wait_for(_ready(actor), _LOOK)
        except RayActorError:
            return True
        except (asyncio.TimeoutError, ray.exceptions.RayError):
            return False
        return False


async def _ready(actor: Any) -> None:
    await actor.__ray_ready__.remote()


BEAT = 2.0
"""Seconds between two words of a replica."""
