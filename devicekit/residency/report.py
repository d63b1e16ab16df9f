"""What residency did for one request: each release with its bytes, each prefetch, and what the cache gave back."""

from __future__ import annotations

from dataclasses import dataclass, field

from devicekit.release import ReleaseEntry
from devicekit.residency.prefetching import Prefetch
from devicekit.residency.rule import Released, ReleaseDecision


@dataclass(frozen=True, slots=True)
class ComponentRelease:
    """One component that was released."""

    component: str
    phase: str
    stage: str
    measured: Released
    decision: ReleaseDecision
    entry: ReleaseEntry  # what the release point made of it

    @property
    def reclaimed(self) -> int | None:
        """Bytes that went back to the driver; ``None`` where the backend does not count."""
        return self.entry.released if self.entry.emptied else 0


@dataclass(slots=True)
class RequestReport:
    """One request, in order of what happened."""

    warmup: bool
    synchronous: bool  # the backend lacks streams: every copy kept the host waiting
    releases: list[ComponentRelease] = field(default_factory=list)
    prefetches: list[Prefetch] = field(default_factory=list)
    #: By component and phase, the most that was allocated while it was in use; only of warm-ups, if asked for.
    peaks: dict[tuple[str, str], int] = field(default_factory=dict)
    bytes_in: int = 0  # copied to the device
    bytes_out: int = 0  # copied to the host

    def reclaimed(self, stage: str | None = None) -> int:
        """Bytes that went back to the driver after components of one stage, or of all, as far as counted."""
        return sum(one.reclaimed or 0 for one in self.releases if stage is None or one.stage == stage)
