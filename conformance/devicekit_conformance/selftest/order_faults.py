"""Faults in waiting, streams and events."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from devicekit.contract import Event, Stream, hookimpl
from devicekit.testing.streams import SimEvent, SimStream
from devicekit_conformance.selftest.honest import Honest, machine


class NeverReturns(Honest):
    """synchronize() hangs."""

    caught_by = "DK-ORDER-001"

    @hookimpl
    def synchronize(self, index: int) -> None:
        time.sleep(3600)


class Crashes(Honest):
    """synchronize() ends the process."""

    caught_by = "DK-ORDER-001"

    @hookimpl
    def synchronize(self, index: int) -> None:
        os.abort()


class DoesNotWait(Honest):
    """synchronize() returns at once."""

    caught_by = "DK-ORDER-002"

    @hookimpl
    def synchronize(self, index: int) -> None:
        """Nobody waits."""


class WaitsForTheCurrentDevice(Honest):
    """synchronize() waits for the current device whatever it is told."""

    caught_by = "DK-ORDER-003"

    @hookimpl
    def synchronize(self, index: int) -> None:
        machine().index_of(index)
        machine().synchronize()


class WaitsForEverything(Honest):
    """synchronize() waits for every device."""

    caught_by = "DK-ORDER-004"

    @hookimpl
    def synchronize(self, index: int) -> None:
        for one in range(len(machine().devices)):
            machine().synchronize(one)
        machine().index_of(index)


class WaitsForOneStream(Honest):
    """synchronize() waits for the current stream only."""

    caught_by = "DK-STREAM-005"

    @hookimpl
    def synchronize(self, index: int) -> None:
        machine().initialize()
        machine().current_stream(index).synchronize()


class SwallowsStreams(Honest):
    """use_stream() changes nothing."""

    caught_by = "DK-STREAM-001"

    @hookimpl
    def use_stream(self, stream: Stream) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


class KeepsStreamAfterAnError(Honest):
    """use_stream() does not restore the stream when the block raises."""

    caught_by = "DK-STREAM-001"

    @hookimpl
    def use_stream(self, stream: Stream) -> AbstractContextManager[object]:
        return _forgetful(stream)


@contextlib.contextmanager
def _forgetful(stream: Stream) -> Iterator[None]:
    before = machine().current_stream(0)
    machine().set_stream(stream)  # type: ignore[arg-type]  # the machine's own
    yield
    machine().set_stream(before)


class PoorStreams(Honest):
    """Streams lack a method."""

    caught_by = "DK-STREAM-002"

    @hookimpl
    def create_stream(self, index: int, priority: int) -> Stream:
        machine().initialize()
        return _Poor(machine().device(index), 0)


class _Poor(SimStream):
    def __getattribute__(self, name: str) -> object:
        if name == "wait_event":
            raise AttributeError(name)
        return super().__getattribute__(name)


class RefusesPriorities(Honest):
    """Priorities that the device lacks are refused."""

    caught_by = "DK-STREAM-003"

    @hookimpl
    def create_stream(self, index: int, priority: int) -> Stream:
        if priority not in (-1, 0):
            raise ValueError(f"no priority {priority}")
        return super().create_stream(index, priority)


class AlwaysDone(Honest):
    """A stream says that it is done while it works."""

    caught_by = "DK-STREAM-004"

    @hookimpl
    def create_stream(self, index: int, priority: int) -> Stream:
        machine().initialize()
        return _Done(machine().device(index), 0)


class _Done(SimStream):
    def query(self) -> bool:
        return True


class IgnoresStreams(Honest):
    """wait_stream() does nothing."""

    caught_by = "DK-STREAM-006"

    @hookimpl
    def create_stream(self, index: int, priority: int) -> Stream:
        machine().initialize()
        return _Independent(machine().device(index), 0)


class _Independent(SimStream):
    def wait_stream(self, stream: Stream) -> None:
        """Nobody waits."""


class IgnoresEvents(Honest):
    """wait_event() does nothing."""

    caught_by = "DK-STREAM-007"

    @hookimpl
    def create_stream(self, index: int, priority: int) -> Stream:
        machine().initialize()
        return _Deaf(machine().device(index), 0)


class _Deaf(SimStream):
    def wait_event(self, event: Event) -> None:
        """Nobody waits."""


class EarlyEvents(Honest):
    """An event is reached before its work is done."""

    caught_by = "DK-STREAM-008"

    @hookimpl
    def create_event(self, index: int, timing: bool, interprocess: bool = False) -> Event:
        machine().initialize()
        return _Early(enable_timing=timing)


class _Early(SimEvent):
    def query(self) -> bool:
        return True


class BackwardsTime(Honest):
    """The time between two events is negative."""

    caught_by = "DK-STREAM-009"

    @hookimpl
    def create_event(self, index: int, timing: bool, interprocess: bool = False) -> Event:
        machine().initialize()
        return _Backwards(enable_timing=timing)


class _Backwards(SimEvent):
    def elapsed_time(self, end: SimEvent) -> float:
        return -super().elapsed_time(end)


class OneThread(Honest):
    """A stream can be waited for by its own thread only."""

    caught_by = "DK-STREAM-014"

    @hookimpl
    def create_stream(self, index: int, priority: int) -> Stream:
        machine().initialize()
        return _Bound(machine().device(index), 0)


class _Bound(SimStream):
    def synchronize(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("this stream belongs to another thread")
        super().synchronize()
