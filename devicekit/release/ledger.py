"""What happened at release points: every decision with its bytes and seconds, to be asked and exported."""

from __future__ import annotations

import enum
import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from devicekit.ranges import whole
from devicekit.release.policy import ReleasePoint


class SkipReason(str, enum.Enum):
    """Why a point did not empty the cache."""

    NEVER = "policy is never"
    NOT_REQUESTED = "not requested"
    TOO_SOON = "too soon after the last"
    UNKNOWN = "the backend does not say what is reclaimable"
    TOO_LITTLE = "too little is reclaimable"
    CAPTURING = "a graph is being captured"
    NOTHING_ALLOCATED = "nothing was allocated yet"
    BAD_FORK = "this process was forked after the device was initialised"
    DRY_RUN = "dry run"
    UNSUPPORTED = "the backend cannot empty its cache"
    FAILED = "the backend's function failed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """One decision at a release point. Truthy if and only if the cache was emptied. ``None``: not known."""

    point: ReleasePoint
    at: float  # the clock's seconds
    emptied: bool
    reason: SkipReason | None = None  # why not
    reserved_before: int | None = None  # bytes
    reserved_after: int | None = None
    reclaimable: int | None = None  # what the allocator said could be released, before
    seconds: float = 0.0
    error: str = ""  # what went wrong, here or in another process that passes its points alike

    def __bool__(self) -> bool:
        return self.emptied

    @property
    def released(self) -> int | None:
        """Bytes handed back; ``None`` where the backend does not count."""
        if self.reserved_before is None or self.reserved_after is None:
            return None
        return self.reserved_before - self.reserved_after

    def as_dict(self) -> dict[str, str | float | int | bool | None]:
        """The entry as plain values, ``released`` included."""
        return {
            "point": self.point.value,
            "at": self.at,
            "emptied": self.emptied,
            "reason": None if self.reason is None else self.reason.value,
            "reserved_before": self.reserved_before,
            "reserved_after": self.reserved_after,
            "released": self.released,
            "reclaimable": self.reclaimable,
            "seconds": self.seconds,
            "error": self.error or None,
        }


@dataclass(slots=True)
class PointCounters:
    """Totals of one release point so far."""

    emptied: int = 0
    skipped: int = 0
    released: int = 0  # bytes, of the times that were counted
    counted: int = 0  # times that it emptied and the backend knew how much came back
    would_release: int = 0  # bytes, of dry runs whose backend says
    seconds: float = 0.0


class Ledger:
    """The last decisions, oldest first. Safe to read while another thread adds to it."""

    def __init__(self, keep: int) -> None:
        whole("keep", keep, most=sys.maxsize)
        self._entries: deque[ReleaseEntry] = deque(maxlen=keep)

    def append(self, entry: ReleaseEntry) -> None:
        """Add a decision. The oldest one is dropped when there are too many."""
        self._entries.append(entry)

    def query(
        self, *, point: ReleasePoint | None = None, since: float | None = None, emptied: bool | None = None
    ) -> list[ReleaseEntry]:
        """Entries of one point, not before ``since`` (the clock's seconds), that emptied or did not."""
        return [
            entry
            for entry in self._entries.copy()
            if (point is None or entry.point is point)
            and (since is None or entry.at >= since)
            and (emptied is None or entry.emptied is emptied)
        ]

    def json_lines(self, *, point: ReleasePoint | None = None, since: float | None = None) -> str:
        """Entries as one JSON object a line."""
        return "".join(json.dumps(entry.as_dict()) + "\n" for entry in self.query(point=point, since=since))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ReleaseEntry]:
        return iter(self._entries.copy())

    def __getitem__(self, index: int) -> ReleaseEntry:
        return self._entries[index]
