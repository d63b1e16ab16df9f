"""Records a device's timeline, on demand or every so often; it initialises, waits for and empties nothing.

::

    with Recorder(device, releases=points, interval=0.1) as recorder:
        engine.generate(prompts)
    write_html(recorder.timeline, "memory.html")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from devicekit.clock import Clock, SystemClock
from devicekit.contract import hookimpl
from devicekit.contract.records import AllocatorState, MemoryInfo
from devicekit.device import Device
from devicekit.observe.timeline import Mark, MarkKind, Sample, Timeline, write_entry, write_head
from devicekit.ranges import finite, whole
from devicekit.release import ReleaseEntry, ReleasePoints


class VerbSource(Protocol):
    """An object that tells of the operations it has done, as an engine's ``scheduler.control`` does."""

    def watch(self, listener: Callable[[str, float, bool], None]) -> None:
        """Call ``listener`` with the name, the seconds and the success of everything that was done."""
        ...

    def unwatch(self, listener: Callable[[str, float, bool], None]) -> None: ...


class Recorder:
    """Collects samples and marks of one device into ``timeline``.

    Inside its ``with`` block every emptying of the allocator's cache is marked, whoever asks for it, and with
    ``interval`` a thread of its own takes a sample that often. `sample` and `mark` work at any time.

    Args:
        releases: whose ledger to mark as well; its clock is then the recorder's.
        interval: real seconds between samples; ``None``: only those that are asked for and those around marks.
        path: a file that every entry of the block is written to at once, for `devicekit top --follow` and for
            after a crash.
        keep: samples held in memory; when there are more, the older half is dropped.

    Raises:
        ConfigurationError: ``interval`` is not positive.
    """

    def __init__(
        self,
        device: Device,
        *,
        releases: ReleasePoints | None = None,
        interval: float | None = None,
        clock: Clock | None = None,
        path: str | Path | None = None,
        keep: int = 100_000,
    ) -> None:
        if interval is not None:
            finite("interval", interval, above=0)
        whole("keep", keep, least=2)  # the older half is dropped
        self.device = device
        self.timeline = Timeline(f"{device.name}:{device.index}")
        self._clock = clock or (SystemClock() if releases is None else releases.clock)
        self._releases = releases
        self._seen: ReleaseEntry | None = releases.ledger[-1] if releases and releases.ledger else None
        self._interval = interval
        self._keep = keep
        self._lock = threading.RLock()
        self._path = None if path is None else Path(path)
        self._file: TextIO | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._observer = _Verbs(self)
        self._attached: list[VerbSource] = []

    def __enter__(self) -> Recorder:
        if self._path is not None:
            self._file = self._path.open("w", encoding="utf-8", buffering=1)
            write_head(self._file, self.timeline)
        self.device.backend.add_observer(self._observer)
        self.sample()
        if self._interval is not None:
            self._thread = threading.Thread(target=self._run, name="devicekit-recorder", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop. An error that ended the sampling thread is raised here, unless the block itself failed."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self.device.backend.remove_observer(self._observer)
        while self._attached:
            self._attached.pop().unwatch(self._done)
        try:
            if kind is None:
                self.sample()
                if self._failure is not None:
                    raise self._failure
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def sample(self) -> Sample:
        """Look at the device now, and take over what is new in the ledger."""
        with self._lock:
            stats = self.device.memory_stats()
            driver = _driver_memory(self.device)
            found = Sample(self._clock.now(), stats.allocated, stats.reserved, driver.free, driver.total)
            self._take_over_ledger()
            self.timeline.samples.append(found)
            if len(self.timeline.samples) > self._keep:
                del self.timeline.samples[: self._keep // 2]
            self._write(found)
            return found

    def mark(
        self,
        label: str,
        kind: MarkKind = MarkKind.NOTE,
        *,
        released: int | None = None,
        seconds: float | None = None,
    ) -> Mark:
        """Mark this moment."""
        return self._add(Mark(self._clock.now(), kind, label, released, seconds))

    @contextmanager
    def verb(self, label: str) -> Iterator[None]:
        """Mark what the ``with`` block does, with a sample before and after it."""
        before = self.sample()
        try:
            yield
        finally:
            after = self.sample()
            released = None
            if before.reserved is not None and after.reserved is not None:
                released = before.reserved - after.reserved
            self._add(Mark(before.at, MarkKind.VERB, label, released, after.at - before.at))

    def attach(self, source: VerbSource) -> None:
        """Mark what ``source`` does by itself until the block ends, with a sample after each.

        As in ``recorder.attach(engine.scheduler.control)``.
        """
        source.watch(self._done)
        self._attached.append(source)

    def _done(self, name: str, seconds: float, success: bool) -> None:
        after = self.sample()
        label = name if success else f"{name} (refused)"
        self._add(Mark(after.at - seconds, MarkKind.VERB, label, None, seconds))

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._interval):
                self.sample()
        except Exception as error:  # raised where somebody can see it: at the end of the block
            self._failure = error

    def _take_over_ledger(self) -> None:
        if self._releases is None:
            return
        fresh: list[ReleaseEntry] = []
        for entry in reversed(tuple(self._releases.ledger)):
            if entry is self._seen:
                break
            fresh.append(entry)
        for entry in reversed(fresh):
            self._seen = entry
            if entry.emptied:
                label = entry.point.value.replace("_", " ")
                self._add(Mark(entry.at, MarkKind.RELEASE, label, entry.released, entry.seconds))

    def _add(self, mark: Mark) -> Mark:
        with self._lock:
            self.timeline.marks.append(mark)
            self._write(mark)
        return mark

    def _write(self, entry: Sample | Mark) -> None:
        if self._file is not None:
            write_entry(self._file, entry)


class _Verbs:
    """Wraps the hooks that give memory back."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @hookimpl(wrapper=True)
    def empty_cache(self) -> Generator[None, object, object]:
        with self._recorder.verb("empty_cache"):
            return (yield)

    @hookimpl(wrapper=True)
    def empty_host_cache(self) -> Generator[None, object, object]:
        with self._recorder.verb("empty_host_cache"):
            return (yield)


def _driver_memory(device: Device) -> MemoryInfo:
    """What the driver says, unless asking could initialise the device."""
    known = device.memory_stats().state is AllocatorState.OK
    return device.memory_info() if known or device.backend.manifest.host else MemoryInfo()
