"""Memory occupation: regions whose memory is given back while another process needs it, and taken again.

Each region is mapped or released. Asking for the state that it is in already is success, with ``changed`` false.
While any that a pass needs is released nothing is generated: requests wait. Passes can do without captured work,
so nobody waits for that; what it refers to takes it along.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from devicekit.contract.records import ErrorKind
from devicekit.contract.text import shown
from devicekit.coordination import run_on_all_ranks
from devicekit.oom import describe as describe_error
from devicekit.release import ReleaseEntry, ReleasePoint
from devicekit.scheduling.errors import InvalidOperation, RanksFailed
from devicekit.scheduling.messages import Blocker, Refusal, describe, emptied
from devicekit.scheduling.verbs.flush import flush_now
from devicekit.weights.operations import MemoryReply, RegionReport, ReleaseMemory, ResumeMemory
from devicekit.weights.regions import WeightsRegion
from devicekit.weights.store import WeightStore

HOLD = "memory"

_log = logging.getLogger(__name__)


class MemoryTag(str, enum.Enum):
    """The regions an engine may have, in the order in which they are released."""

    GRAPHS = "graphs"  # captured work, which refers to all the others
    KV_CACHE = "kv_cache"
    HOST_KV = "host_kv"
    WEIGHTS = "weights"


_REFERRED_TO = frozenset(
    {MemoryTag.KV_CACHE, MemoryTag.WEIGHTS}
)  # by captured work, at the addresses of then


class Region(Protocol):
    """Memory that can be given back and taken again. Both do all or nothing, and return bytes if they can."""

    def release(self) -> int | None: ...

    def resume(self) -> int | None: ...


@dataclass(slots=True)
class _Progress:
    """What was done so far, and what failed."""

    reports: list[RegionReport]
    failure: str = ""


class Occupation:
    """The regions of one engine, and the operations on them."""

    def __init__(self, store: WeightStore, regions: Mapping[MemoryTag, Region]) -> None:
        """``regions`` are those besides the weights, which every engine has."""
        self._store = store
        self._state = store.state
        self._hold = store.state.gate.token(HOLD)
        self._weights = WeightsRegion(store)
        self._regions: dict[MemoryTag, Region] = {**regions, MemoryTag.WEIGHTS: self._weights}
        self._released: set[MemoryTag] = set()  # on any rank
        self._gone: set[MemoryTag] = set()  # on this one

    @property
    def released(self) -> frozenset[MemoryTag]:
        """Regions without memory, here or on another rank: a region is there only if every rank has it."""
        return frozenset(self._released)

    def release(self, operation: ReleaseMemory) -> MemoryReply:
        """Release regions, unless anything blocks.

        Raises:
            InvalidOperation: a tag is unknown.
        """
        tags = _parse(operation.tags)
        blockers = self._state.blockers()
        if MemoryTag.WEIGHTS in tags and self._store.staging:
            # An update reads the weights, or has still to write them.
            blockers = (*blockers, Blocker("weight update", 1))
        if blockers:
            return MemoryReply(
                operation.id, False, f"Not idle: {describe(blockers)}.", blockers, refusal=Refusal.BUSY
            )
        if self._mapped(MemoryTag.KV_CACHE, tags):
            # Before the memory goes: a flush afterwards would touch what is no longer there.
            flush_now(self._state, operation.id, empty_cache=False)
        done = _Progress([])
        for tag in MemoryTag:
            if tag in tags and not done.failure:
                self._attempt(done, tag, lambda tag=tag: self._release(tag, operation))
        self._tell()
        release = self._state.releases.attempt(ReleasePoint.MEMORY_OCCUPATION)
        if MemoryTag.HOST_KV in tags and not done.failure:
            self._empty_host_cache(done)
        return self._reply(operation.id, "released", done, release)

    def resume(self, operation: ResumeMemory) -> MemoryReply:
        """Give released regions memory again. One for which there is none stays released.

        Raises:
            InvalidOperation: a tag is unknown.
        """
        tags = _parse(operation.tags)
        done = _Progress([])
        for tag in reversed(MemoryTag):
            if tag in tags and not done.failure:
                self._attempt(done, tag, lambda tag=tag: self._resume(tag))
        self._tell()
        return self._reply(operation.id, "resumed", done, None)

    def _mapped(self, tag: MemoryTag, tags: frozenset[MemoryTag]) -> bool:
        return tag in tags and tag in self._regions and tag not in self._released

    def _release(self, tag: MemoryTag, operation: ReleaseMemory) -> RegionReport:
        region = self._regions.get(tag)
        if region is None:
            return RegionReport(tag.value, False, False, present=False)
        ranks = self._state.coordinator
        if tag in self._released and ranks.least(tag in self._gone):
            return RegionReport(tag.value, True, False)
        sizes: list[int | None] = [0]

        def attempt() -> None:
            if tag not in self._gone:  # the second time, only where the first one failed
                if tag in _REFERRED_TO:
                    self._forget_captured()
                sizes[:] = [region.release()]
                self._gone.add(tag)

        backup = 0
        try:
            if tag is MemoryTag.WEIGHTS and operation.backup_weights:
                backup = run_on_all_ranks(ranks, lambda: 0 if tag in self._gone else self._weights.back_up())
            run_on_all_ranks(ranks, attempt)
        except Exception:
            self._weights.drop_backup()  # it would be of old weights by the next time
            if not ranks.least(tag not in self._gone):
                self._released.add(tag)
            raise
        self._released.add(tag)
        return RegionReport(tag.value, True, True, sizes[0], backup)

    def _forget_captured(self) -> None:
        captured = self._regions.get(MemoryTag.GRAPHS)
        if captured is not None and MemoryTag.GRAPHS not in self._gone:
            captured.release()
            captured.resume()

    def _resume(self, tag: MemoryTag) -> RegionReport:
        region, ranks = self._regions.get(tag), self._state.coordinator
        if region is None or tag not in self._released:
            return RegionReport(tag.value, False, False, present=region is not None)
        sizes: list[int | None] = [0]

        def attempt() -> None:
            if tag in self._gone:
                sizes[:] = [region.resume()]
                self._gone.discard(tag)

        if tag is MemoryTag.WEIGHTS and not ranks.least(not self._weights.unsaved):
            self._store.distrust(self._weights.names)  # one rank without its values is as bad as all
        try:
            run_on_all_ranks(ranks, attempt)
        except Exception as error:
            kind = self._store.device.classify_error(error)
            if kind is not ErrorKind.OUT_OF_MEMORY and not isinstance(error, RanksFailed):
                raise
            retry = True
        else:
            retry = False
        if retry:  # outside the handler: its traceback holds on to what was allocated so far
            self._state.releases.attempt(ReleasePoint.OUT_OF_MEMORY)
            run_on_all_ranks(ranks, attempt)
        self._released.discard(tag)
        return RegionReport(tag.value, False, True, sizes[0])

    def _attempt(self, done: _Progress, tag: MemoryTag, act: _Act) -> None:
        try:
            done.reports.append(act())
        except Exception as error:  # what was done before stays done, and the answer says what that is
            _log.exception("the memory of %s", tag.value)
            done.failure = f"{tag.value}: {type(error).__name__}: {error}"
            done.reports.append(RegionReport(tag.value, tag in self._released, False))
            # Requests wait for this memory, and no forward pass would ever find out.
            if self._store.device.classify_error(error) is ErrorKind.DEVICE_LOST:
                self._state.fail_all(f"The memory of {tag.value} is gone: {describe_error(error)}")

    def _empty_host_cache(self, done: _Progress) -> None:
        try:
            run_on_all_ranks(self._state.coordinator, self._store.device.empty_host_cache)
        except Exception as error:
            _log.exception("emptying the cache of host memory")
            done.failure = f"the cache of host memory was not emptied: {type(error).__name__}: {error}"

    def _tell(self) -> None:
        """Hold generation back while a region that it needs is released, and tell the weights' users of theirs."""
        self._store.note_released(MemoryTag.WEIGHTS in self._released)
        if needed := self._released - {MemoryTag.GRAPHS}:
            names = " and ".join(sorted(tag.value for tag in needed))
            self._hold.hold(f"the memory of {names} is released")
        else:
            self._hold.release()

    def _reply(self, identity: str, verb: str, done: _Progress, release: ReleaseEntry | None) -> MemoryReply:
        changed = [one.tag for one in done.reports if one.changed]
        message = f"Memory {verb}: {', '.join(changed) or 'nothing to do'}."
        if done.failure:
            message = f"Not everything was {verb}: {done.failure}."
        reply = MemoryReply(
            identity,
            True,
            message if release is None else emptied(message, release),
            regions=tuple(done.reports),
            release=release,
            untrusted=len(self._store.untrusted),
        )
        if not done.failure:
            return reply
        return replace(reply, success=False, refusal=Refusal.FAILED)


class _Act(Protocol):
    def __call__(self) -> RegionReport: ...


def _parse(tags: tuple[str, ...]) -> frozenset[MemoryTag]:
    known = {tag.value: tag for tag in MemoryTag}
    if unknown := [tag for tag in tags if tag not in known]:
        raise InvalidOperation(
            f"There is no memory tag {shown(unknown[0])}; there are {', '.join(sorted(known))}."
        )
    return frozenset(known[tag] for tag in tags) or frozenset(MemoryTag)
