"""Named release points: where the allocator's cache may be emptied, whether it is, and what that gave back.

Emptying synchronises the device, so nobody does it in passing. Each point has a policy; each decision, taken or
not, is an entry in a ledger that can be read.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from devicekit.clock import Clock, SystemClock
from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device


class ReleasePoint(str, enum.Enum):
    """The places where emptying can help."""

    FLUSH = "flush"
    WEIGHT_UPDATE = "weight_update"
    CONTINUE = "continue"
    IDLE = "idle"
    OUT_OF_MEMORY = "out_of_memory"
    COMPONENT = "component"
    MEMORY_OCCUPATION = "memory_occupation"
    AVAILABLE_MEMORY = "available_memory"


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """When a point empties. Make one with `always`, `never`, `on_request`, `interval` or `when_reclaimable`."""

    kind: str
    default: bool = False  # on_request: what happens when the request does not say
    seconds: float = 0.0  # interval: at least this long between two
    bytes: int = 0  # when_reclaimable: at least this much to gain

    def __str__(self) -> str:
        details = {
            "on_request": f" (default {'yes' if self.default else 'no'})",
            "interval": f" of {self.seconds:g} s",
            "when_reclaimable": f" {self.bytes} bytes",
        }
        return self.kind + details.get(self.kind, "")


def always() -> ReleasePolicy:
    """Empty each time."""
    return ReleasePolicy("always")


def never() -> ReleasePolicy:
    """Do not empty, whatever a request says."""
    return ReleasePolicy("never")


def on_request(*, default: bool) -> ReleasePolicy:
    """Do as the request says; ``default`` where it does not say."""
    return ReleasePolicy("on_request", default=default)


def interval(seconds: float) -> ReleasePolicy:
    """Empty when more than ``seconds`` have passed since the last time.

    Raises:
        ConfigurationError: ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise ConfigurationError(f"A release interval must be a positive number of seconds, not {seconds!r}.")
    return ReleasePolicy("interval", seconds=seconds)


def when_reclaimable(size: int) -> ReleasePolicy:
    """Empty when at least ``size`` bytes would come back; where the backend cannot tell, do not."""
    return ReleasePolicy("when_reclaimable", bytes=size)


DEFAULT_POLICIES: Mapping[ReleasePoint, ReleasePolicy] = MappingProxyType(
    {
        ReleasePoint.FLUSH: on_request(default=True),
        ReleasePoint.WEIGHT_UPDATE: on_request(default=False),
        # Updating in place never flushes: without this, reserved memory grows with every update until it fails.
        ReleasePoint.CONTINUE: on_request(default=True),
        ReleasePoint.IDLE: never(),
        ReleasePoint.OUT_OF_MEMORY: always(),
        ReleasePoint.COMPONENT: on_request(default=False),
        ReleasePoint.MEMORY_OCCUPATION: always(),
        ReleasePoint.AVAILABLE_MEMORY: on_request(default=False),
    }
)


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """One decision at a release point. Truthy if and only if the cache was emptied."""

    point: ReleasePoint
    at: float  # the clock's seconds
    emptied: bool
    reason: str | None  # why not
    reserved_before: int | None = None
    reserved_after: int | None = None
    reclaimable: int | None = None  # what the allocator said could be released, before
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return self.emptied

    @property
    def released(self) -> int | None:
        """Bytes handed back; ``None`` where the backend does not count."""
        if self.reserved_before is None or self.reserved_after is None:
            return None
        return self.reserved_before - self.reserved_after


@dataclass(slots=True)
class PointCounters:
    """What one point did so far."""

    emptied: int = 0
    skipped: int = 0
    released: int = 0  # bytes, of the times that were counted
    seconds: float = 0.0


@dataclass(slots=True)
class ReleasePoints:
    """The release points of one device.

    Args:
        device: whose cache is emptied. The effect reaches every device of the process.
        policies: overrides of `DEFAULT_POLICIES`.
        dry_run: decide and record, and empty nothing; entries carry ``reclaimable``.
        keep: how many ledger entries are kept.
        agreed: which figure decides, given this process's; between ranks they must all decide alike.
    """

    device: Device
    policies: Mapping[ReleasePoint, ReleasePolicy] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    dry_run: bool = False
    keep: int = 1024
    agreed: Callable[[int | None], int | None] = lambda own: own
    ledger: deque[ReleaseEntry] = field(init=False)
    counters: dict[ReleasePoint, PointCounters] = field(init=False)
    _last: dict[ReleasePoint, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.policies = {**DEFAULT_POLICIES, **self.policies}
        self.ledger = deque(maxlen=self.keep)
        self.counters = {point: PointCounters() for point in ReleasePoint}
        started = self.clock.now()
        self._last = dict.fromkeys(ReleasePoint, started)

    def reach(self, point: ReleasePoint, requested: bool | None = None) -> ReleaseEntry:
        """Pass a release point.

        Args:
            requested: what the caller's request said, where the policy asks for it.

        Raises:
            HookError: the backend's function failed.
        """
        now = self.clock.now()
        policy = self.policies[point]
        if (skip := self._reason_to_skip(point, policy, requested, now)) is not None:
            return self._record(ReleaseEntry(point, now, False, skip))
        self._last[point] = now
        reclaimable = self.device.memory_stats().releasable
        if self.dry_run:
            return self._record(ReleaseEntry(point, now, False, "dry run", reclaimable=reclaimable))
        done = self.device.empty_cache()
        entry = ReleaseEntry(
            point,
            now,
            done.called,
            done.reason,
            done.reserved_before,
            done.reserved_after,
            reclaimable,
            done.seconds,
        )
        return self._record(entry)

    def _reason_to_skip(
        self, point: ReleasePoint, policy: ReleasePolicy, requested: bool | None, now: float
    ) -> str | None:
        if policy.kind == "never":
            return "policy is never"
        if policy.kind == "on_request" and not (policy.default if requested is None else requested):
            return "not requested"
        if policy.kind == "interval" and not now - self._last[point] > policy.seconds:
            return f"less than {policy.seconds:g} s since the last"
        if policy.kind == "when_reclaimable":
            reclaimable = self.agreed(self.device.memory_stats().releasable)
            if reclaimable is None:
                return "the backend does not say what is reclaimable"
            if reclaimable < policy.bytes:
                return f"{reclaimable} bytes are reclaimable, fewer than {policy.bytes}"
        # Emptying during capture breaks the graph on some vendors and asserts on others.
        return "a graph is being captured" if self.device.is_capturing() else None

    def _record(self, entry: ReleaseEntry) -> ReleaseEntry:
        # An idle engine passes its point many times a second: a skip there is counted, not kept.
        if entry.emptied or entry.point is not ReleasePoint.IDLE:
            self.ledger.append(entry)
        counters = self.counters[entry.point]
        if entry.emptied:
            counters.emptied += 1
            counters.seconds += entry.seconds
            counters.released += entry.released or 0
        else:
            counters.skipped += 1
        return entry
