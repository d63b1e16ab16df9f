"""Times the stages of a program, on the host and on the device, and what memory each of them took.

::

    profiler = StageProfiler(device)
    with profiler.stage("generate"):
        with profiler.stage("prefill"):
            ...
        with profiler.stage("decode"):
            ...
    print(profiler.report())

Nothing is emptied, initialised or reset to measure, and nothing waits unless ``synchronize`` is set: work that
is still under way when a stage ends is then counted, in the host's time, with the stage that waits for it. The
device's time comes from a pair of events on the current stream, and is right either way.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Protocol, cast

from devicekit.contract.handles import Event, TimingEvent
from devicekit.contract.records import AllocatorState, MemoryStats
from devicekit.device import Device
from devicekit.observe.memory_scope import MemoryScope
from devicekit.observe.summary import StageSummary, as_text, summarize
from devicekit.ranges import whole


class Profiler(Protocol):
    """What code that can be profiled asks for: `StageProfiler`, or `NO_PROFILER` where nobody looks."""

    def stage(self, name: str) -> AbstractContextManager[object]:
        """A context around one stage."""
        ...


class _NoProfiler:
    _nothing = nullcontext()

    def stage(self, name: str) -> AbstractContextManager[object]:
        return self._nothing


NO_PROFILER: Profiler = _NoProfiler()
"""Profiles nothing, for about the price of a method call."""


class StageProfiler:
    """Records each stage that passes, per thread nested.

    Args:
        synchronize: wait for the device at both ends of every stage, so that the host's time is the stage's own.
            Changes what is measured; skipped during graph capture and before first use.
        memory: read the allocator's statistics at both ends.
        keep: how many records are kept; older ones are dropped, and counted in ``dropped``.
    """

    def __init__(
        self,
        device: Device,
        *,
        synchronize: bool = False,
        memory: bool = True,
        keep: int = 10_000,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = device
        self.dropped = 0
        self._synchronize = synchronize
        self._memory = memory
        self._now = now
        whole("keep", keep, most=sys.maxsize)
        self._records: deque[Stage] = deque(maxlen=keep)
        self._open = threading.local()  # .path: names of the stages that this thread is in
        self._has_events = device.supports("create_event") and device.supports("current_stream")
        self._asks = self._has_events or synchronize

    def stage(self, name: str) -> Stage:
        """A context around one stage; its record is the value of the ``with``, complete when the block ends."""
        return Stage(self, name)

    @property
    def records(self) -> Sequence[Stage]:
        """Finished stages, in the order in which they ended."""
        return tuple(self._records)

    def clear(self) -> None:
        """Forget every record."""
        self._records.clear()
        self.dropped = 0

    def summary(self) -> Sequence[StageSummary]:
        """Counts, times and memory for each path, in the order in which they first ended."""
        return summarize(self._records)

    def report(self) -> str:
        """The summary as a table."""
        return as_text(self.summary())

    def _may_ask(self, stats: MemoryStats) -> bool:
        """Whether the device can be asked for more than numbers without changing its state."""
        return stats.state is AllocatorState.OK and self.device.is_capturing() is not True

    def _mark(self) -> Event:
        event = self.device.create_event(timing=True)
        event.record(self.device.current_stream())
        return event

    def _finish(self, stage: Stage) -> None:
        if len(self._records) == self._records.maxlen:
            self.dropped += 1
        self._records.append(stage)

    def _path(self) -> list[str]:
        return cast("list[str]", self._open.__dict__.setdefault("path", []))


class Stage:
    """One passage through a stage. ``failed`` says that it ended with an exception."""

    __slots__ = (
        "_begin",
        "_device_seconds",
        "_end",
        "_profiler",
        "failed",
        "memory",
        "name",
        "path",
        "started",
        "thread",
        "wall_seconds",
    )

    def __init__(self, profiler: StageProfiler, name: str) -> None:
        self._profiler = profiler
        self.name = name
        self.path: tuple[str, ...] = (name,)  # the stages around it, and itself
        self.started = 0.0
        self.wall_seconds = 0.0
        self.thread = threading.get_ident()
        self.memory = MemoryScope(profiler.device, name) if profiler._memory else None
        self.failed = False
        self._begin: Event | None = None
        self._end: Event | None = None
        self._device_seconds: float | None = None

    @property
    def depth(self) -> int:
        """How many stages are around it."""
        return len(self.path) - 1

    @property
    def device_seconds(self) -> float | None:
        """Seconds between both ends on the device's own clock.

        ``None``: the backend has no events, the device was not in use when the stage began, a graph was being
        captured, or the device has not come that far yet. Does not wait.
        """
        if self._device_seconds is None and self._end is not None and self._end.query():
            begin = cast("TimingEvent", self._begin)
            self._device_seconds = begin.elapsed_time(self._end) / 1000
        return self._device_seconds

    def __enter__(self) -> Stage:
        profiler = self._profiler
        if self.memory is not None or profiler._asks:
            stats = profiler.device.memory_stats()
            if profiler._asks and profiler._may_ask(stats):
                if profiler._synchronize:
                    profiler.device.synchronize()
                if profiler._has_events:
                    self._begin = profiler._mark()
            if self.memory is not None:
                self.memory.start(stats)
        path = profiler._path()
        path.append(self.name)  # last: a device that could not be asked leaves no stage open
        self.path = tuple(path)
        self.started = profiler._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        profiler = self._profiler
        try:
            if self.memory is not None or profiler._asks:
                stats = profiler.device.memory_stats()
                # A failed stage may have lost the device, and asking it for more would hide why.
                if kind is None and profiler._asks and profiler._may_ask(stats):
                    if self._begin is not None:
                        self._end = profiler._mark()
                    if profiler._synchronize:
                        profiler.device.synchronize()
                if self.memory is not None:
                    self.memory.stop(stats)
            self.wall_seconds = profiler._now() - self.started
        finally:
            self.failed = kind is not None
            profiler._path().pop()
            profiler._finish(self)
