"""Every way of observing a device, as actions that must leave it untouched."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import devicekit
from devicekit import Device
from devicekit.commands.top_view import as_text
from devicekit.contract.hooks import HOOKS
from devicekit.observe import (
    AllocationLog,
    Limit,
    OnOutOfMemory,
    Recorder,
    StageProfiler,
    Statistics,
    Tracer,
    Track,
    as_html,
    chrome_trace,
    memory_scope,
    watch,
)
from devicekit.observe.run import metrics_of
from devicekit.release import ReleasePoint, ReleasePoints

Action = Callable[[Device], object]


def _use_scope(device: Device) -> object:
    with memory_scope(device) as outer, memory_scope(device) as scope:
        found = (scope.current, scope.peak, scope.total)
    return found, outer.peak_bounds, outer.reserved


def _use_profiler(device: Device) -> object:
    profiler = StageProfiler(device)
    with profiler.stage("outer"), profiler.stage("inner"):
        pass
    return profiler.report(), metrics_of(profiler)


def _use_recorder(device: Device) -> object:
    with Recorder(device, releases=ReleasePoints(device)) as recorder, recorder.verb("nothing"):
        recorder.sample()
        recorder.mark("here")
    return as_html(recorder.timeline), as_text(recorder.timeline)


def _use_adaptors(device: Device) -> object:
    statistics, track, limit = Statistics(), Track(), Limit(1 << 40)
    with (
        tempfile.TemporaryDirectory() as folder,
        AllocationLog(Path(folder) / "log.csv") as log,
        watch(device, statistics, OnOutOfMemory(lambda *_: True)),
        watch(device, track, limit, log),
        statistics.scope("nothing") as scope,
    ):
        pass
    return scope, track.report(), limit.left


def _use_tracer(device: Device) -> object:
    with Tracer(device) as tracer:
        device.memory_stats()
    return chrome_trace(tracer.spans)


def _use_dry_run(device: Device) -> object:
    points = ReleasePoints(device, dry_run=True)
    return [points.reach(point, requested=True) for point in ReleasePoint]


OBSERVERS: Mapping[str, Action] = {
    "scope": _use_scope,
    "profiler": _use_profiler,
    "recorder": _use_recorder,
    "adaptors": _use_adaptors,
    "tracer": _use_tracer,
    "dry run": _use_dry_run,
}
# Hooks whose description allows them to initialise a device are queries only once it is initialised.
QUERIES: Mapping[str, Action] = {
    "memory_stats": lambda device: device.memory_stats(),
    "host_memory_stats": lambda device: device.host_memory_stats(),
    "is_capturing": lambda device: device.is_capturing(),
    "copies_overlap": lambda device: device.copies_overlap(),
    "collective_backend": lambda device: device.collective_backend(),
    "visible_devices_variable": lambda device: device.visible_devices_variable(),
    "is_bad_fork": lambda device: device.is_bad_fork(),
    "profiler_activity": lambda device: device.profiler_activity(),
    "classify_error": lambda device: device.classify_error(RuntimeError("no memory")),
    "supports": lambda device: [device.supports(hook) for hook in HOOKS],
    "repr": repr,
}
INITIALISING: Mapping[str, Action] = {
    "memory_info": lambda device: device.memory_info(),
    "properties": lambda device: device.properties(),
    "process_memory": lambda device: device.process_memory(),
    "memory_snapshot": lambda device: device.memory_snapshot(),
    "current_index": lambda device: device.current_index(),
    "available_memory": devicekit.available_memory,
}
