"""Streams and events on a virtual clock: what is submitted stays pending until the clock reaches its end.

A stream works in order, so the end of each operation is known when it is submitted. An operation has two parts.
Its *device part* is what later work in the same stream must see; it runs when such work is submitted, or at the
operation's end, whichever is first. Its *completion* is what the host must not see early; it runs at the end.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Protocol

import torch

from devicekit.contract.handles import Event, Stream
from devicekit.testing import active
from devicekit.testing.clock import MockClock

__all__ = ["Operation", "SimEvent", "SimStream", "StreamFence", "StreamHost", "own"]

_numbers = itertools.count(1)


class StreamHost(Protocol):
    """What a stream needs of its device."""

    index: int
    clock: MockClock
    tail: float
    lock: RLock

    @property
    def poll_seconds(self) -> float: ...

    @property
    def blocking_launches(self) -> bool: ...

    def visit(self, operation: str) -> None:
        """Run the scripted faults of `operation`."""


@dataclass(slots=True)
class Operation:
    """Work in a stream. ``done`` once its end has come and its completion has run."""

    name: str
    number: int
    end: float
    device_part: Callable[[], None] | None
    completion: Callable[[], None] | None
    done: bool = False

    def run_device_part(self) -> None:
        part, self.device_part = self.device_part, None
        if part is not None:
            part()

    def complete(self) -> None:
        # Forgotten once it has run, for it holds on to the tensors it copies.
        completion, self.completion = self.completion, None
        if completion is not None:
            completion()
        self.done = True


class SimStream:
    """An ordered queue of work on one device, the current one by default. Equal streams are the same queue."""

    def __init__(
        self,
        device: StreamHost | torch.device | int | str | None = None,
        priority: int = 0,
        *,
        stream_id: int | None = None,
    ) -> None:
        if device is None or isinstance(device, torch.device | int | str):
            active.simulator().initialize()
            device = active.simulator().device(device)
        self.host: StreamHost = device
        self.host.visit("stream.create")
        self.stream_id = next(_numbers) if stream_id is None else stream_id
        self.priority = priority
        self.tail = 0.0
        self._pending: deque[Operation] = deque()
        # Of these, the ones whose device part has not run yet. They run in order, so this is the tail end.
        self._unrun: deque[Operation] = deque()

    @property
    def device(self) -> torch.device:
        return torch.device(active.DEVICE_TYPE, self.host.index)

    @property
    def device_index(self) -> int:
        return self.host.index

    def query(self) -> bool:
        """True when everything submitted has retired. A False costs the host ``SimConfig.poll_seconds``."""
        self.host.visit("stream.query")
        return self._poll(self.tail)

    def synchronize(self) -> None:
        """Wait until everything submitted has retired."""
        self.host.visit("stream.synchronize")
        self.host.clock.advance_to(self.tail)

    def record_event(self, event: SimEvent | None = None) -> SimEvent:
        event = SimEvent() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Everything submitted from now on runs after `event`. The host does not wait."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Everything submitted from now on runs after all that `stream` was given so far. The host goes on."""
        other = own(stream)
        self._wait(other, other.tail)

    def submit(
        self,
        name: str,
        seconds: float,
        device_part: Callable[[], None] | None = None,
        completion: Callable[[], None] | None = None,
    ) -> Operation:
        """Queue work that takes `seconds` of the device's time, behind all that is queued already."""
        with self.host.lock:
            self._extend(seconds)
            operation = Operation(name, next(_numbers), self.tail, device_part, completion)
            self._pending.append(operation)
            if device_part is not None:
                self._unrun.append(operation)
        if self.tail <= self.host.clock.now():
            self._retire()
        else:
            self.host.clock.call_at(self.tail, self._retire)
        self._block_if_asked()
        return operation

    def launch(self, seconds: float) -> None:
        """Queue a kernel whose effect the caller applies at once: all that it may read is made true first."""
        with self.host.lock:
            self.run_device_parts()
            self._extend(seconds)
        self._block_if_asked()

    def run_device_parts(self, through: int | None = None) -> None:
        """Apply the device parts of what is queued, up to operation number `through`."""
        with self.host.lock:
            while self._unrun and (through is None or self._unrun[0].number <= through):
                self._unrun.popleft().run_device_part()

    def fence(self) -> StreamFence:
        return StreamFence(self, self.tail)

    def _wait(self, stream: SimStream, until: float, through: int | None = None) -> None:
        if stream is self:
            return
        self.tail = max(self.tail, until)
        self.host.tail = max(self.host.tail, self.tail)
        if stream._pending:
            last = stream._pending[-1].number if through is None else through
            self.submit("wait", 0.0, lambda: stream.run_device_parts(last))

    def _extend(self, seconds: float) -> None:
        self.tail = max(self.tail, self.host.clock.now()) + seconds
        self.host.tail = max(self.host.tail, self.tail)

    def _block_if_asked(self) -> None:
        if self.host.blocking_launches:
            self.host.clock.advance_to(self.tail)

    def _poll(self, end: float) -> bool:
        done = self.host.clock.now() >= end
        if not done:
            self.host.clock.advance(self.host.poll_seconds)
        return done

    def _retire(self) -> None:
        now = self.host.clock.now()
        with self.host.lock:
            while self._pending and self._pending[0].end <= now:
                operation = self._pending.popleft()
                self.run_device_parts(operation.number)
                operation.complete()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SimStream) and self.host is other.host and self.stream_id == other.stream_id

    def __hash__(self) -> int:
        return hash((self.host.index, self.stream_id))

    def __repr__(self) -> str:
        return f"<sim stream {self.stream_id} of device {self.host.index}, busy until {self.tail:g} s>"


def own(stream: object) -> SimStream:
    """`stream` itself. Raises TypeError when it is not of this device type."""
    if not isinstance(stream, SimStream):
        raise TypeError(f"a stream of torch.{active.DEVICE_TYPE} is needed here, not {stream!r}")
    return stream


class SimEvent:
    """A mark in a stream. Never recorded, it counts as done, as vendors' events do."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess:
            raise NotImplementedError(
                "the simulated accelerator lives in one process: its events cannot be shared"
            )
        self.enable_timing = enable_timing
        self.blocking = blocking
        self._stream: SimStream | None = None
        self._time = 0.0
        self._through = 0

    def record(self, stream: Stream | None = None) -> None:
        """Mark the end of all that `stream`, by default the current one, was given so far."""
        marked = active.simulator().current_stream() if stream is None else own(stream)
        marked.host.visit("event.record")
        self._stream = marked
        self._time = max(marked.tail, marked.host.clock.now())
        self._through = next(_numbers)

    def wait(self, stream: Stream | None = None) -> None:
        """Make `stream`, by default the current one, wait for this mark before anything submitted to it later."""
        waiting = active.simulator().current_stream() if stream is None else own(stream)
        waiting.host.visit("event.wait")
        if self._stream is not None:
            waiting._wait(self._stream, self._time, self._through)

    def query(self) -> bool:
        """True when the mark was reached. A False costs the host ``SimConfig.poll_seconds``."""
        if self._stream is None:
            return True
        self._stream.host.visit("event.query")
        return self._stream._poll(self._time)

    def synchronize(self) -> None:
        """Wait until the mark is reached."""
        if self._stream is not None:
            self._stream.host.visit("event.synchronize")
            self._stream.host.clock.advance_to(self._time)

    def elapsed_time(self, end: SimEvent) -> float:
        """Milliseconds of the device's time from this mark to `end`.

        Raises ValueError when either was made without ``enable_timing`` or was never recorded, RuntimeError when
        either has not been reached yet.
        """
        for event in (self, end):
            if not event.enable_timing:
                raise ValueError("both events must be made with enable_timing=True")
            if event._stream is None:
                raise ValueError("both events must be recorded before the time between them is asked for")
            if event._stream.host.clock.now() < event._time:
                raise RuntimeError(
                    "an event has not been reached yet: synchronize before asking for the time"
                )
        return (end._time - self._time) * 1e3


class StreamFence:
    """All that a stream was given up to now; done when it has retired."""

    __slots__ = ("_end", "_stream")

    def __init__(self, stream: SimStream, end: float) -> None:
        self._stream = stream
        self._end = end

    def done(self) -> bool:
        return self._stream.host.clock.now() >= self._end
