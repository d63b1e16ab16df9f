"""Spans and stages in the format of Chrome's trace viewer, which Perfetto reads too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from devicekit.contract.hooks import HOOKS
from devicekit.observe.stages import Stage
from devicekit.observe.tracing import Span


def write_chrome_trace(path: str | Path, spans: Iterable[Span], stages: Iterable[Stage] = ()) -> None:
    """Write a file for chrome://tracing or ui.perfetto.dev: hook calls inside the stages that made them."""
    Path(path).write_text(json.dumps(chrome_trace(spans, stages)), encoding="utf-8")


def chrome_trace(spans: Iterable[Span], stages: Iterable[Stage] = ()) -> dict[str, object]:
    """The document that `write_chrome_trace` writes. Times are microseconds of `time.perf_counter`."""
    events = [
        _event(
            span.hook,
            HOOKS[span.hook].kind.value,
            span.started,
            span.seconds,
            span.thread,
            {
                "device": span.backend if span.index is None else f"{span.backend}:{span.index}",
                "bytes": span.bytes,
                "error": span.error,
            },
        )
        for span in spans
    ]
    events += [
        _event(
            stage.name,
            "stage",
            stage.started,
            stage.wall_seconds,
            stage.thread,
            {
                "device_seconds": stage.device_seconds,
                "bytes": None if stage.memory is None else stage.memory.current,
                "failed": stage.failed or None,
            },
        )
        for stage in stages
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(
    name: str, category: str, started: float, seconds: float, thread: int, facts: Mapping[str, object]
) -> dict[str, object]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",  # a complete event: begin and duration in one
        "ts": started * 1e6,
        "dur": seconds * 1e6,
        "pid": os.getpid(),
        "tid": thread,
        "args": {key: value for key, value in facts.items() if value is not None},
    }
