"""Named release points: when the allocator's cache is emptied, and what that gave back.

Emptying synchronises the device, so nobody does it in passing. Each point has a policy; each decision, taken or
not, is an entry in a ledger that can be read::

    releases = ReleasePoints.configured(device)          # defaults, file, environment
    releases.reach(ReleasePoint.FLUSH)                   # -> ReleaseEntry
    releases.ledger.query(point=ReleasePoint.FLUSH)
    releases.counters[ReleasePoint.FLUSH].released       # bytes so far
"""

from __future__ import annotations

from devicekit.release.ledger import Ledger, PointCounters, ReleaseEntry, SkipReason
from devicekit.release.points import ReleasePoints
from devicekit.release.policy import (
    DEFAULT_POLICIES,
    InvalidReleaseSetting,
    ReleasePoint,
    ReleasePolicy,
    always,
    interval,
    never,
    on_request,
    parse_policy,
    when_reclaimable,
)
from devicekit.release.settings import ReleaseSettings, read_settings

__all__ = [
    "DEFAULT_POLICIES",
    "InvalidReleaseSetting",
    "Ledger",
    "PointCounters",
    "ReleaseEntry",
    "ReleasePoint",
    "ReleasePoints",
    "ReleasePolicy",
    "ReleaseSettings",
    "SkipReason",
    "always",
    "interval",
    "never",
    "on_request",
    "parse_policy",
    "read_settings",
    "when_reclaimable",
]
