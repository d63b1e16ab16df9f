"""Observing a device without touching it: allocations, scopes, stages, spans, timelines and baselines."""

from __future__ import annotations

from devicekit.observe.allocation_log import AllocationLog, LogLine, ReplayReport, read_log, replay
from devicekit.observe.allocations import Adaptor, Allocation, settle, watch
from devicekit.observe.baseline import Baseline, compare
from devicekit.observe.chrome import chrome_trace, write_chrome_trace
from devicekit.observe.html import as_html, write_html
from devicekit.observe.limit import Limit, MemoryLimitExceeded, OnOutOfMemory
from devicekit.observe.memory_scope import MemoryScope, memory_scope
from devicekit.observe.recorder import Recorder
from devicekit.observe.run import Metric, Provenance, Run, metrics_of, provenance_of
from devicekit.observe.stages import NO_PROFILER, Profiler, Stage, StageProfiler
from devicekit.observe.statistics import AllocationScope, Statistics, Tally
from devicekit.observe.summary import StageSummary
from devicekit.observe.timeline import Mark, MarkKind, Sample, Timeline
from devicekit.observe.tracing import Span, Tracer
from devicekit.observe.track import Outstanding, Track

__all__ = [
    "NO_PROFILER",
    "Adaptor",
    "Allocation",
    "AllocationLog",
    "AllocationScope",
    "Baseline",
    "Limit",
    "LogLine",
    "Mark",
    "MarkKind",
    "MemoryLimitExceeded",
    "MemoryScope",
    "Metric",
    "OnOutOfMemory",
    "Outstanding",
    "Profiler",
    "Provenance",
    "Recorder",
    "ReplayReport",
    "Run",
    "Sample",
    "Span",
    "Stage",
    "StageProfiler",
    "StageSummary",
    "Statistics",
    "Tally",
    "Timeline",
    "Tracer",
    "Track",
    "as_html",
    "chrome_trace",
    "compare",
    "memory_scope",
    "metrics_of",
    "provenance_of",
    "read_log",
    "replay",
    "settle",
    "watch",
    "write_chrome_trace",
    "write_html",
]
