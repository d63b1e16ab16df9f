"""The objects that ordering hooks hand out, as the least an engine needs of them.

torch's own stream, event and graph classes satisfy these protocols on every vendor that has them, so a plugin
usually returns those unchanged.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Event(Protocol):
    """A point in a stream's work.

    One that was never recorded counts as reached. Recorded again it is the new mark; what waits already waits for
    the mark as it was then, also when the event is gone.
    """

    def record(self, stream: Stream | None = None) -> None:
        """Mark the current end of ``stream``, of the event's device.

        The default is that device's current stream, for whoever has made the device current. Where another device
        is current, ``stream`` must be given.
        """

    def query(self) -> bool:
        """Whether all work before the mark has finished. Does not wait."""

    def synchronize(self) -> None:
        """Block the calling thread until the mark is reached."""

    def wait(self, stream: Stream | None = None) -> None:
        """Make later work of ``stream`` wait for the mark, on whichever device. Does not block the thread.

        The default is the current stream of the calling thread's current device.
        """


@runtime_checkable
class TimingEvent(Event, Protocol):
    """An event that was made with ``timing``."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from this mark to that of ``end_event``, when both have been reached."""
        ...


@runtime_checkable
class Stream(Protocol):
    """An ordered queue of work on one device."""

    def query(self) -> bool:
        """Whether all work submitted so far has finished. Does not wait."""

    def synchronize(self) -> None:
        """Block the calling thread until all work submitted so far has finished."""

    def wait_event(self, event: Event) -> None:
        """Make later work of this stream wait for ``event``."""

    def wait_stream(self, stream: Stream) -> None:
        """Make later work of this stream wait for everything now in ``stream``."""


@runtime_checkable
class DeviceGraph(Protocol):
    """Captured work that can be replayed."""

    def capture(self) -> AbstractContextManager[None]:
        """Record the work submitted inside the ``with`` block instead of running it.

        For an empty graph. After a block that raised, nothing but `reset` is promised to work.
        """

    def replay(self) -> None:
        """Run the captured work on the current stream. Raises where there is none, as after `reset`."""

    def reset(self) -> None:
        """Drop the captured work and the memory it holds."""


@runtime_checkable
class MemoryPool(Protocol):
    """A private region of the device's allocator."""

    def use(self) -> AbstractContextManager[None]:
        """Serve allocations made inside the ``with`` block from this pool."""
