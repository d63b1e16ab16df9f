"""The prefix cache's second level: what was evicted from the device is loaded back from host memory.

A prefix is written through to the host when it enters the cache. It is loaded when a request is admitted of whose
prompt the host holds more than the device. Until a copy has finished, its pages are locked on both sides, and it
keeps the engine from being idle, under the name `host_copies`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from devicekit.contract.errors import ConfigurationError
from devicekit.coordination import Coordinator, SingleRank
from devicekit.memory import page_ids
from devicekit.memory.audit import Conservation, audit
from devicekit.memory.copies import Copy
from devicekit.memory.host_kv import HostKVPool
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_node import Node
from devicekit.scheduling.batch import Int32
from devicekit.scheduling.kv_cache.manager import KVCacheManager
from devicekit.scheduling.participants import Participant

BLOCKER = "host_copies"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TierCounters:
    """What the tier did so far, in pages."""

    stored: int = 0
    loaded: int = 0
    skipped: int = 0  # not written through: host memory was full of what is being copied


@dataclass(frozen=True, slots=True)
class _Underway:
    copy: Copy
    host: Node  # locked in the host's tree
    device: Node | None  # locked in the device's tree


class HostCacheManager:
    """One host pool under one prefix cache."""

    def __init__(self, pool: HostKVPool, prefix: PrefixCache, coordinator: Coordinator | None = None) -> None:
        self.pool = pool
        self._coordinator = coordinator or SingleRank()
        self.counters = TierCounters()
        self._page_size = prefix.page_size
        self._prefix = prefix
        self._tree = PrefixCache(pool.pages, prefix.page_size)
        self._underway: deque[_Underway] = deque()
        self._mapped = True

    @property
    def copies(self) -> tuple[Copy, ...]:
        """Copies that are not known to have finished, oldest first."""
        return tuple(one.copy for one in self._underway)

    @property
    def pages(self) -> PageAllocator:
        """The host's pages."""
        return self.pool.pages

    def audit(self) -> Conservation:
        """Account for every host page."""
        return audit(self.pool.pages, cache=self._tree)

    @property
    def tree(self) -> PrefixCache:
        """The prefixes that are on the host, for audits."""
        return self._tree

    def participant(self) -> Participant:
        """How the scheduler collects finished copies, and forgets what is on the host."""
        return Participant(BLOCKER, self.flush, lambda: len(self._underway), self.retire)

    # -- For `KVCacheManager` ------------------------------------------------------------------------------------

    def load(self, tokens: Int32, namespace: Hashable, known: int, target: bytes, owner: str) -> int:
        """Load what the host holds of a prompt beyond its first ``known`` pages.

        Args:
            target: device pages for the tokens behind those, which nobody else uses yet.

        Returns:
            How many of them are being filled. Forward passes that begin later find them filled.
        """
        if not self._mapped:
            return 0
        match = self._tree.match(tokens, namespace)
        source = page_ids.first(page_ids.behind(match.pages, known), page_ids.count(target))
        if not source:
            return 0
        count = page_ids.count(source)
        copy: Copy | None = None
        try:
            copy = self.pool.load(source, page_ids.first(target, count), owner)
        except Exception:  # the prompt is computed instead
            _log.exception("%d pages could not be loaded from host memory for %s", count, owner)
        if not self._begun(copy) or copy is None:
            return 0
        self._tree.lock(match.node)
        self._track(_Underway(copy, match.node, None))
        self.counters.loaded += count
        return count

    def store(self, tokens: Int32, namespace: Hashable, pages: bytes, node: Node, owner: str) -> None:
        """Copy a cached prefix to the host, as far as it is not there yet and there is room.

        Args:
            pages: device pages of ``tokens``, all of them full.
            node: their place in the device's cache.
        """
        if not self._mapped or not pages:
            return
        size = self._page_size
        key = tokens[: page_ids.count(pages) * size]
        match = self._tree.match(key, namespace)
        known = page_ids.count(match.pages)
        wanted = page_ids.count(pages) - known
        if not wanted:
            return
        self._tree.lock(match.node)  # making room must not evict what this prefix continues
        target = self._take(wanted)
        count = page_ids.count(target)
        self.counters.skipped += wanted - count
        if count:
            self._begin(key[: (known + count) * size], namespace, match.pages, pages, target, node, owner)
        self._tree.unlock(match.node)

    def _begin(
        self,
        key: Int32,
        namespace: Hashable,
        known: bytes,
        pages: bytes,
        target: bytes,
        node: Node,
        owner: str,
    ) -> None:
        source = page_ids.first(page_ids.behind(pages, page_ids.count(known)), page_ids.count(target))
        copy: Copy | None = None
        try:
            copy = self.pool.store(source, target, owner)
        except Exception:  # the prefix is on the device all the same
            _log.exception(
                "%d pages could not be stored in host memory for %s", page_ids.count(target), owner
            )
        if not self._begun(copy) or copy is None:
            self.pool.pages.give(target)
            return
        # Known before it is there: copies run in order, so whoever loads it will find it.
        done = self._tree.insert(key, known + target, namespace)
        self._tree.lock(done.node)
        self._prefix.lock(node)
        self._track(_Underway(copy, done.node, node))
        self.counters.stored += page_ids.count(target)

    def _begun(self, copy: Copy | None) -> bool:
        """Whether every rank has begun a copy. If not, this rank's is waited for and then dropped."""
        begun = self._coordinator.least(copy is not None)
        if copy is not None and not begun:
            copy.wait()
        return bool(begun)

    def _take(self, count: int) -> bytes:
        """Up to ``count`` host pages, evicting what is not being copied."""
        pages = self.pool.pages
        if count > pages.available:
            self._tree.evict(count - pages.available)
        return pages.take(min(count, pages.available)) or b""

    def _track(self, underway: _Underway) -> None:
        self._underway.append(underway)
        if underway.copy.event is None:
            self.retire()

    def wait(self) -> None:
        """Wait for every copy under way."""
        if not self._underway:
            return
        waited = True
        try:
            for one in self._underway:
                one.copy.wait()
        except Exception:
            _log.exception("copies between host and device failed: the host tier is used no more")
            waited = False
        if not self._coordinator.least(waited):
            self._abandon()
        while self._underway:
            self._unlock(self._underway.popleft())

    def _unlock(self, one: _Underway) -> None:
        self._tree.unlock(one.host)
        if one.device is not None:
            self._prefix.unlock(one.device)

    def _abandon(self) -> None:
        """Stop using host memory: nobody knows what is in it."""
        self._mapped = False
        while self._underway:
            self._unlock(self._underway.popleft())
        self._tree.reset()

    # -- For the scheduler ------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Unlock what finished copies have locked. Copies finish in order."""
        if not self._underway:
            return
        done = 1  # one more than have finished; 0: failed
        try:
            while done <= len(self._underway) and self._underway[done - 1].copy.done():
                done += 1
        except Exception:
            _log.exception("copies between host and device failed: the host tier is used no more")
            done = 0
        done = self._coordinator.least(done)
        if not done:
            self._abandon()
        for _ in range(done - 1):
            self._unlock(self._underway.popleft())

    def flush(self) -> None:
        """Forget everything on the host. No copy may be under way."""
        self._tree.reset()

    def release(self) -> int:
        """Free the host memory until `resume`; returns its bytes. Nothing is stored or found meanwhile."""
        self.flush()
        self._mapped = False
        return self.pool.release()

    def resume(self) -> int:
        """Allocate the host memory again; returns its bytes."""
        size = self.pool.resume()
        self._mapped = True
        return size


class _State(Protocol):
    @property
    def kv(self) -> KVCacheManager: ...

    @property
    def coordinator(self) -> Coordinator: ...


class _Scheduler(Protocol):
    @property
    def state(self) -> _State: ...

    def register(self, participant: Participant) -> None: ...


def attach_host_cache(scheduler: _Scheduler, pool: HostKVPool) -> HostCacheManager:
    """Give a scheduler a second level for its prefix cache.

    Raises:
        ConfigurationError: it has no prefix cache, or its model has recurrent layers.
    """
    kv = scheduler.state.kv
    if kv.prefix is None:
        raise ConfigurationError("A host tier needs prefix caching.")
    if any(layer.restricts for layer in kv.layers):
        raise ConfigurationError("A host tier keeps pages alone, which do not continue a recurrent model.")
    tier = HostCacheManager(pool, kv.prefix, scheduler.state.coordinator)
    kv.attach_tier(tier)
    scheduler.register(tier.participant())
    return tier
