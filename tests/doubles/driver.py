"""What a vendor's hardware and runtime remember: whether they are in use, bytes, streams on a clock, captures."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

MIB = 1024**2
GIB = 1024**3
SEGMENT = 2 * MIB
COUNTERS = ("num_alloc_retries", "num_ooms", "num_device_alloc", "num_device_free")


@dataclass
class Card:
    """One device's allocator. Blocks are rounded as the vendor rounds; segments are 2 MiB."""

    total: int = 1024 * MIB
    used_by_others: int = 64 * MIB
    padding: int = 0  # bytes the vendor adds to each request
    fraction: float = 1.0
    live: dict[int, tuple[int, int]] = field(default_factory=dict)  # handle -> requested, rounded
    handles: int = 0  # given out so far
    requested: int = 0
    allocated: int = 0
    reserved: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    @property
    def free(self) -> int:
        return self.total - self.used_by_others - self.reserved

    def take(self, size: int) -> int | None:
        """A handle, or None if there is no room."""
        rounded = -(-(size + self.padding) // 512) * 512
        segments = self._missing(rounded)
        if not self._has_room(segments):
            self.counters["num_alloc_retries"] += 1
            self.flush()
            segments = self._missing(rounded)
        if not self._has_room(segments):
            self.counters["num_ooms"] += 1
            return None
        self.reserved += segments * SEGMENT
        self.counters["num_device_alloc"] += segments
        self.handles += 1
        self.live[self.handles] = (size, rounded)
        self.requested += size
        self.allocated += rounded
        self._note_peaks()
        return self.handles

    def _missing(self, rounded: int) -> int:
        """Segments that a block of so many bytes needs beside what is cached."""
        return -(-max(0, self.allocated + rounded - self.reserved) // SEGMENT)

    def _has_room(self, segments: int) -> bool:
        """Whether the driver gives so many segments; a limit below what is cached forbids no use of the cache."""
        room = min(self.free, self.total * self.fraction - self.reserved)
        return not segments or segments * SEGMENT <= room

    def give_back(self, handle: int) -> None:
        size, rounded = self.live.pop(handle)
        self.requested -= size
        self.allocated -= rounded

    def flush(self) -> None:
        kept = -(-self.allocated // SEGMENT) * SEGMENT
        self.counters["num_device_free"] += (self.reserved - kept) // SEGMENT
        self.reserved = kept

    def reset_peaks(self) -> None:
        self.peaks.clear()
        self._note_peaks()

    def current(self) -> dict[str, int]:
        """Bytes by torch's own names."""
        return {
            "allocated_bytes": self.allocated,
            "active_bytes": self.allocated,
            "requested_bytes": self.requested,
            "reserved_bytes": self.reserved,
        }

    def _note_peaks(self) -> None:
        for name, value in self.current().items():
            self.peaks[name] = max(value, self.peaks.get(name, 0))


@dataclass
class Queue:
    """A stream's work: everything in it is done once the clock reaches ``until``."""

    index: int
    priority: int = 0
    until: float = 0.0
    capturing: bool = False


class CurrentQueues:
    """The calling thread's stream of each card: the default one until the thread chooses another."""

    def __init__(self, defaults: list[Queue]) -> None:
        self._defaults = defaults
        self._chosen: dict[tuple[int, int], Queue] = {}  # by thread and card

    def __getitem__(self, index: int) -> Queue:
        return self._chosen.get((threading.get_ident(), index), self._defaults[index])

    def __setitem__(self, index: int, queue: Queue) -> None:
        self._chosen.pop((threading.get_ident(), index), None)
        if queue is not self._defaults[index]:
            self._chosen[threading.get_ident(), index] = queue

    def __iter__(self) -> Iterator[Queue]:
        return (self[index] for index in range(len(self._defaults)))


class Driver:
    """The state behind one double. Tests set it and look at it."""

    def __init__(self, *, cards: int = 2, padding: int = 0) -> None:
        self.cards = [Card(padding=padding) for _ in range(cards)]
        self.padding = padding
        self.initialised = False
        self.forked = False  # in a child of a process that had initialised
        self.poisons_fork = False  # something was called that makes a later fork fatal
        self._chosen: dict[int, int] = {}  # by thread; those that chose none, or device 0, are left out
        self.has_context = True  # the calling thread has chosen a device
        self.now = 0.0  # milliseconds
        self.queues = [Queue(index) for index in range(cards)]
        self.current_queues = CurrentQueues(list(self.queues))
        self.seeds: dict[int, int] = {}
        self.pinned = {"allocated_bytes.current": 0, "active_bytes.current": 0}
        self.registered: dict[int, int] = {}  # host memory in place: bytes, by address
        self.pooled: dict[int, int] = {}  # and what the pool of pinned memory handed out
        self.ipc_waiting = 0
        self.history: object = "never set"
        self.pool_in_use: object = None
        self.only_thread: int | None = None  # that captures, and that alone may allocate meanwhile
        self.hiding_variable: str | None = None  # hides every card where it is set to nothing

    @property
    def visible(self) -> int:
        """How many cards this process may see."""
        hidden = self.hiding_variable is not None and os.environ.get(self.hiding_variable) == ""
        return 0 if hidden else len(self.cards)

    @property
    def current(self) -> int:
        """The calling thread's device."""
        return self._chosen.get(threading.get_ident(), 0)

    @current.setter
    def current(self, index: int) -> None:
        self._chosen.pop(threading.get_ident(), None)
        if index:
            self._chosen[threading.get_ident()] = index

    def locked(self, start: int, nbytes: int) -> bool:
        """Whether any of these bytes of the host is page-locked."""
        ranges = (*self.registered.items(), *self.pooled.items())
        return any(first < start + nbytes and start < first + size for first, size in ranges)

    def allocate(self, index: int, size: int) -> int | None:
        """What creating a tensor does, or None if there is no room."""
        if self.only_thread not in (None, threading.get_ident()):
            raise RuntimeError("operation not permitted when stream is capturing")
        self.initialised = True
        return self.cards[index].take(size)

    def submit(self, milliseconds: float) -> None:
        """Put work into the current device's current stream."""
        self.initialised = True
        queue = self.current_queues[self.current]
        queue.until = max(self.now, queue.until) + milliseconds

    @contextmanager
    def on(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        try:
            yield
        finally:
            self.current = before
