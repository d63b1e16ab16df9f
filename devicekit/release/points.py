"""The release points of one device: decides at each whether to empty the cache, does it, and records it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from devicekit.clock import Clock, SystemClock
from devicekit.contract.records import AllocatorState, MemoryStats
from devicekit.coordination import Coordinator, SingleRank
from devicekit.device import Device
from devicekit.release.ledger import Ledger, PointCounters, ReleaseEntry, SkipReason
from devicekit.release.policy import DEFAULT_POLICIES, ReleasePoint, ReleasePolicy
from devicekit.release.settings import read_settings

_log = logging.getLogger(__name__)
LARGE = 1 << 30  # bytes that are worth a synchronisation after a request has failed
_GUARDED_STATES = {
    AllocatorState.UNINITIALISED: SkipReason.NOTHING_ALLOCATED,
    AllocatorState.BAD_FORK: SkipReason.BAD_FORK,
}


@dataclass(slots=True)
class ReleasePoints:
    """The release points of one device. `configured` makes them as the user has set them.

    Args:
        device: whose cache is emptied. The effect reaches every device of the process.
        policies: overrides of `DEFAULT_POLICIES`.
        dry_run: decide and record, and empty nothing; entries carry ``reclaimable``.
        keep: how many ledger entries are kept.
        coordinator: ranks that must all decide alike settle on one figure of reclaimable bytes, rank 0's.
    """

    device: Device
    policies: Mapping[ReleasePoint, ReleasePolicy] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    dry_run: bool = False
    keep: int = 1024
    coordinator: Coordinator = field(default_factory=SingleRank)
    ledger: Ledger = field(init=False)
    counters: dict[ReleasePoint, PointCounters] = field(init=False)
    _last: dict[ReleasePoint, float] = field(init=False, default_factory=dict)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self.policies = {**DEFAULT_POLICIES, **self.policies}
        self.ledger = Ledger(self.keep)
        self.counters = {point: PointCounters() for point in ReleasePoint}
        self._started = self.clock.now()

    @classmethod
    def configured(
        cls,
        device: Device,
        policies: Mapping[ReleasePoint, ReleasePolicy] | None = None,
        *,
        clock: Clock | None = None,
        coordinator: Coordinator | None = None,
        dry_run: bool | None = None,
        environ: Mapping[str, str] | None = None,
        file: str | Path | None = None,
    ) -> ReleasePoints:
        """The points as set by ``policies``, else the environment, else the file, else by default.

        Raises:
            InvalidReleaseSetting: a variable or the file cannot be honoured.
        """
        settings = read_settings(environ, file)
        return cls(
            device,
            {**settings.policies, **(policies or {})},
            clock or SystemClock(),
            dry_run=bool(settings.dry_run) if dry_run is None else dry_run,
            coordinator=coordinator or SingleRank(),
        )

    def reach(self, point: ReleasePoint, requested: bool | None = None) -> ReleaseEntry:
        """Pass a release point.

        Args:
            requested: what the caller's request said, where the policy asks for it.

        Raises:
            HookError: the backend's function failed. The ledger has an entry of it.
        """
        now = self.clock.now()
        policy = self.policies[point]
        # Policies first: most passes end here, and nothing was asked of the device.
        if (skip := self._unwanted(point, policy, requested, now)) is not None:
            return self._record(ReleaseEntry(point, now, False, skip))
        deciding: int | None = None
        if policy.kind == "when_reclaimable":
            deciding = self.coordinator.first(self.device.memory_stats().releasable)
        # Emptying during capture breaks the graph on some vendors and asserts on others.
        if self.device.is_capturing():
            return self._record(ReleaseEntry(point, now, False, SkipReason.CAPTURING))
        stats = self.device.memory_stats()
        reclaimable = stats.releasable
        if (skip := _impossible(policy, stats, deciding)) is not None:
            return self._record(ReleaseEntry(point, now, False, skip, reclaimable=reclaimable))
        self._last[point] = now
        if self.dry_run:
            return self._record(
                ReleaseEntry(point, now, False, SkipReason.DRY_RUN, stats.reserved, None, reclaimable)
            )
        return self._record(self._empty(point, now, stats))

    def before_available_memory(self, requested: bool | None) -> ReleaseEntry:
        """Pass the point before somebody asks how much memory is available."""
        return self.reach(ReleasePoint.AVAILABLE_MEMORY, requested)

    def after_failed_request(self) -> ReleaseEntry:
        """Pass the point of a request that failed for any other reason than memory.

        It asks for emptying where `LARGE` bytes would come back, since a large request's blocks may not fit the
        next one, and where the device shares its memory with the host.
        """
        try:
            reclaimable = self.device.memory_stats().releasable
            shared = bool(self.device.properties().unified_memory) and self.device.torch_device.type != "cpu"
        except Exception:  # the request has failed already, and for another reason
            _log.exception("asking what a failed request has left")
            reclaimable, shared = None, False
        agreed = self.coordinator.first(reclaimable)
        return self.attempt(ReleasePoint.REQUEST_FAILED, shared or (agreed is not None and agreed >= LARGE))

    def attempt(self, point: ReleasePoint, requested: bool | None = None) -> ReleaseEntry:
        """Pass a release point after something that is done and stays done, even if this fails.

        Returns:
            The ledger's entry; its ``error`` says what failed, here or on another rank.
        """
        began = self.clock.now()
        errors: list[str] = []
        try:
            entry = self.reach(point, requested)
        except Exception as error:
            _log.exception("emptying the cache failed at release point %s", point.value)
            entries = self.ledger.query(point=point, since=began)
            entry = entries[-1] if entries else ReleaseEntry(point, began, False, SkipReason.FAILED)
            errors = [f"{type(error).__name__}: {error}"]
        return replace(entry, error="; ".join(self.coordinator.names(errors)))

    def _unwanted(
        self, point: ReleasePoint, policy: ReleasePolicy, requested: bool | None, now: float
    ) -> SkipReason | None:
        if policy.kind == "never":
            return SkipReason.NEVER
        if policy.kind == "on_request" and not (policy.default if requested is None else requested):
            return SkipReason.NOT_REQUESTED
        last = self._last.get(point)
        if policy.kind == "interval":
            since = self._started if last is None else last
            if not now - since > policy.seconds:
                return SkipReason.TOO_SOON
        if policy.minimum_interval and last is not None and now - last < policy.minimum_interval:
            return SkipReason.TOO_SOON
        return None

    def _empty(self, point: ReleasePoint, now: float, stats: MemoryStats) -> ReleaseEntry:
        try:
            done = self.device.empty_cache()
        except Exception:
            self._record(
                ReleaseEntry(point, now, False, SkipReason.FAILED, stats.reserved, None, stats.releasable)
            )
            raise
        return ReleaseEntry(
            point,
            now,
            done.called,
            None if done.called else SkipReason.UNSUPPORTED,
            done.reserved_before,
            done.reserved_after,
            stats.releasable,
            done.seconds,
        )

    def _record(self, entry: ReleaseEntry) -> ReleaseEntry:
        # An idle engine passes its point many times a second: a skip there is counted, not kept.
        if entry.emptied or entry.point is not ReleasePoint.IDLE or entry.reason in _RARE:
            self.ledger.append(entry)
        counters = self.counters[entry.point]
        if entry.emptied:
            counters.emptied += 1
            counters.seconds += entry.seconds
            if entry.released is not None:
                counters.released += entry.released
                counters.counted += 1
        else:
            counters.skipped += 1
            if entry.reason is SkipReason.DRY_RUN:
                counters.would_release += entry.reclaimable or 0
        return entry


# Skips that cannot come with every step, since they come after the interval.
_RARE = frozenset({SkipReason.DRY_RUN, SkipReason.FAILED})


def _impossible(policy: ReleasePolicy, stats: MemoryStats, releasable: int | None) -> SkipReason | None:
    """Why the allocator's state rules emptying out; ``None``: it does not."""
    if (guarded := _GUARDED_STATES.get(stats.state)) is not None:
        return guarded
    if policy.kind != "when_reclaimable":
        return None
    if releasable is None:
        return SkipReason.UNKNOWN
    return SkipReason.TOO_LITTLE if releasable < policy.bytes else None
