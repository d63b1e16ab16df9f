"""Faults in what contract 1.1 added."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from devicekit.contract import AllocatorSetting, DeviceGraph, Event, Stream, Telemetry, hookimpl
from devicekit.testing.graphs import SimGraph
from devicekit.testing.streams import SimEvent, own
from devicekit_conformance.selftest.honest import Honest, claiming, machine


class SettingAStreamMovesTheDevice(Honest):
    """Setting a stream makes another device current."""

    caught_by = "DK-CONTROL-001"

    @hookimpl
    def set_current_stream(self, stream: Stream) -> None:
        super().set_current_stream(stream)
        machine().set_device(1)


class AFreshDefaultStream(Honest):
    """default_stream() answers with a new stream each time."""

    caught_by = "DK-CONTROL-002"

    @hookimpl
    def default_stream(self, index: int) -> Stream:
        return machine().create_stream(index)


class OneHandleForAll(Honest):
    """Every stream has one native handle."""

    caught_by = "DK-CONTROL-003"

    @hookimpl
    def native_handle(self, stream: Stream) -> int:
        return own(stream).device_index


class _Closing(SimGraph):
    def reset(self) -> None:
        super().reset()
        for other in _Closing.made:
            other._steps.clear()

    made: list[SimGraph] = []  # noqa: RUF012  # all of this process


class APoolEndsWithItsFirstGraph(Honest):
    """Dropping one graph of a pool drops the work of the others."""

    caught_by = "DK-CONTROL-004"

    @hookimpl
    def create_graph(self, index: int, pool: object | None = None) -> DeviceGraph:
        machine().initialize()
        found = _Closing(machine().device(index), pool) if pool else SimGraph(machine().device(index))
        _Closing.made.append(found)
        return found


class ListsWhatItCannotMultiply(Honest):
    """supported_dtypes() lists a dtype in which nothing can be computed."""

    caught_by = "DK-CONTROL-005"

    @hookimpl
    def supported_dtypes(self, index: int) -> frozenset[torch.dtype] | None:
        return frozenset({torch.float32, torch.bits16})


class CallsEverythingPinned(Honest):
    """is_pinned() is True of any host memory."""

    caught_by = "DK-CONTROL-006"

    @hookimpl
    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cpu"


class SettingsThatStay(Honest):
    """Setting an allocator's setting changes nothing."""

    caught_by = "DK-CONTROL-007"

    @hookimpl
    def allocator_settings(self) -> Sequence[AllocatorSetting] | None:
        return [AllocatorSetting("small_limit", "1048576", True)]

    @hookimpl
    def set_allocator_setting(self, name: str, value: str) -> None:
        return None


class TelemetryInMilliwatts(Honest):
    """Power is told in milliwatts, and utilisation in per cent."""

    caught_by = "DK-CONTROL-008"

    @hookimpl
    def telemetry(self, index: int) -> Telemetry:
        return Telemetry(41.0, 98_500.0, 37.0, 1_500_000_000)


class ReachesNobody(Honest):
    """A device is said to reach no memory but its own, and the runtime says otherwise."""

    caught_by = "DK-CONTROL-009"

    @hookimpl
    def can_access_peer(self, index: int, peer: int) -> bool:
        return index == peer


class PrioritiesUpsideDown(Honest):
    """priority_range() gives the highest priority first."""

    caught_by = "DK-CONTROL-010"

    @hookimpl
    def priority_range(self, index: int) -> tuple[int, int] | None:
        found = super().priority_range(index)
        return None if found is None else (found[1], found[0])


class SendingOffWaits(Honest):
    """submit_work() waits for the work."""

    caught_by = "DK-CONTROL-011"

    @hookimpl
    def submit_work(self, index: int) -> None:
        self.synchronize(index)


class SharesEvents(Honest):
    """The simulated accelerator with events that other processes can see, by files that say which are done."""

    manifest = claiming("event_sharing")

    @hookimpl
    def create_event(self, index: int, timing: bool, interprocess: bool = False) -> Event:
        return _Shared() if interprocess else super().create_event(index, timing, False)

    @hookimpl
    def export_event(self, event: Event) -> object:
        descriptor, path = tempfile.mkstemp()
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("done" if event.query() else "pending")
        return path

    @hookimpl
    def import_event(self, index: int, handle: object) -> Event:
        path = Path(str(handle))
        return _Told(path.read_text(encoding="utf-8") == "done")


class _Shared(SimEvent):
    """An event of which a handle can be made."""


class _Told(SimEvent):
    """Another process's event, as it was when its handle was made."""

    def __init__(self, done: bool) -> None:
        super().__init__()
        self._told = done

    def query(self) -> bool:
        return self._told


class EventsThatAreAlwaysDone(SharesEvents):
    """An event of another process seems done while it is pending there."""

    caught_by = "DK-PROC-015"

    @hookimpl
    def import_event(self, index: int, handle: object) -> Event:
        return _Told(True)
