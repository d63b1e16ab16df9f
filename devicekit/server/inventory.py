"""Where every id of every pool is, and how scattered the free ones are. Counted on request."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from devicekit.memory.audit import Conservation
from devicekit.memory.pages import PagePool, largest_free_run
from devicekit.scheduling.interface import EngineScheduler
from devicekit.server.loop import EngineLoop

_FRESH = 1.0  # seconds: counting sorts all ids and walks the prefix cache, so askers share a count
_PATIENCE = 2.0  # seconds: nobody waits longer than this for an engine that is in a long step


@dataclass(frozen=True, slots=True)
class PoolCount:
    """One pool: available + evictable + protected + owned == total, unless something is wrong."""

    available: int
    evictable: int  # in the prefix cache, and could be taken
    protected: int  # in the prefix cache, and in use
    owned: int  # by requests alone
    total: int
    largest_free_run: int  # consecutive ids; against ``available``, how fragmented the pool is

    @property
    def missing(self) -> int:
        """Ids that are in no term; negative where some are in two."""
        return self.total - self.available - self.evictable - self.protected - self.owned


class Inventory:
    """The last count of the pools, renewed when it is asked for and old."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._pools: dict[str, PoolCount] | None = None
        self._at = 0.0
        self._counting: asyncio.Future[None] | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the last count; ``None`` before the first."""
        return None if self._pools is None else time.monotonic() - self._at

    async def pools(self) -> dict[str, PoolCount] | None:
        """Every pool by name: ``pages`` and ``rows``, and what else there is of ``states``, ``snapshots``,
        ``window_pages`` and ``host_pages``.

        Counted between two steps, at most once a second. While a step takes long, the last count is given
        again; ``None`` if there has been none.
        """
        age = self.age
        if (age is None or age > _FRESH) and self._loop.failure is None:
            if self._counting is None or self._counting.done():
                self._counting = asyncio.ensure_future(self._count())
            # One count serves all who ask meanwhile; what ends it is told to each.
            await asyncio.wait((self._counting,), timeout=_PATIENCE)
            if self._counting.done():
                self._counting.result()
        return self._pools

    async def _count(self) -> None:
        self._pools = await self._loop.look(count_pools)
        self._at = time.monotonic()


def count_pools(scheduler: EngineScheduler) -> dict[str, PoolCount]:
    """Count, from the scheduler's own thread. An imbalance is noted in the scheduler's state."""
    found = dict(scheduler.audit().accounts())
    return {name: _count(pool, found[name]) for name, pool in scheduler.state.kv.pools().items()}


def _count(pool: PagePool, account: Conservation) -> PoolCount:
    return PoolCount(
        account.available,
        account.evictable,
        account.protected,
        account.owned,
        account.total,
        largest_free_run(pool),
    )
