"""What it costs to give every running request the slot that its next token needs: a decode step's allocation."""

from __future__ import annotations

import numpy as np

from bench.harness import Row, Timing, measure, timed_row
from bench.scheduler import steady
from devicekit.device import Device, get_device

_CASES = [(size, running) for size in (16, 1) for running in (64, 256, 1024)]


def run() -> list[Row]:
    """Every case, page by page size."""
    device = get_device("cpu")
    rows: list[Row] = []
    for page_size, running in _CASES:
        timing = _allocation(device, running, page_size)
        case = f"decode allocation, pages of {page_size}, {running:,} running"
        curve = f"decode allocation, pages of {page_size}, by requests running"
        rows.append(timed_row(case, timing, curve=curve, at=running))
    return rows


def _allocation(device: Device, running: int, page_size: int) -> Timing:
    """A step without its model, less what noting the tokens and moving on by one costs."""
    batch = steady(device, running, page_size=page_size).state.running
    names = {"begin": batch.begin_step, "end": batch.end_step, "tokens": np.full(running, 7, np.int32)}
    whole = measure("begin(); end(tokens)", names)
    return whole.beyond(measure("end(tokens)", names))
