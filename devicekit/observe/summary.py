"""Many passages through the same stages, added up: what a profiler prints and a baseline keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from devicekit.observe.memory_scope import MemoryScope


class Passage(Protocol):
    """What is added up: a `Stage` is one."""

    path: tuple[str, ...]
    failed: bool
    wall_seconds: float
    memory: MemoryScope | None

    @property
    def device_seconds(self) -> float | None:
        """Seconds on the device's own clock, where they are known."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """All passages through one stage. ``None``: not known for every one of them."""

    path: tuple[str, ...]
    count: int
    failed: int
    wall_seconds: float  # of all passages together
    wall_longest: float
    device_seconds: float | None
    allocated: int | None  # bytes left behind, of all passages together
    peak: int | None  # bytes above the start of the stage, the highest


def summarize(stages: Iterable[Passage]) -> Sequence[StageSummary]:
    """One summary for each path."""
    groups: dict[tuple[str, ...], list[Passage]] = {}
    for stage in stages:
        groups.setdefault(stage.path, []).append(stage)
    return [_summary(path, group) for path, group in groups.items()]


def as_text(summaries: Sequence[StageSummary]) -> str:
    """An aligned table, stages indented under those around them."""
    rows: list[tuple[str, ...]] = [
        ("stage", "count", "wall ms", "longest", "device ms", "left bytes", "peak bytes")
    ]
    rows += [_row(one) for one in sorted(summaries, key=lambda summary: summary.path)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _row(one: StageSummary) -> tuple[str, ...]:
    return (
        "  " * (len(one.path) - 1) + one.path[-1],
        str(one.count),
        f"{one.wall_seconds * 1e3:.3f}",
        f"{one.wall_longest * 1e3:.3f}",
        "?" if one.device_seconds is None else f"{one.device_seconds * 1e3:.3f}",
        "?" if one.allocated is None else str(one.allocated),
        "?" if one.peak is None else str(one.peak),
    )


def _summary(path: tuple[str, ...], stages: Sequence[Passage]) -> StageSummary:
    on_device = [stage.device_seconds for stage in stages]
    left = [stage.memory.current if stage.memory else None for stage in stages]
    peaks = [stage.memory.peak if stage.memory else None for stage in stages]
    return StageSummary(
        path=path,
        count=len(stages),
        failed=sum(stage.failed for stage in stages),
        wall_seconds=math.fsum(stage.wall_seconds for stage in stages),
        wall_longest=max(stage.wall_seconds for stage in stages),
        device_seconds=None if None in on_device else math.fsum(one for one in on_device if one is not None),
        allocated=None if None in left else sum(one for one in left if one is not None),
        peak=None if None in peaks else max((one for one in peaks if one is not None), default=None),
    )
