"""How long steps take on the device, without waiting in the middle of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimer:
    """Times steps; the figures are there once somebody asks."""

    def __init__(self) -> None:
        self._steps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step."""
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # of torch
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # of torch
        start.record()
        yield
        end.record()
        self._steps.append((start, end))

    def milliseconds(self) -> list[float]:
        """Of each step so far."""
        torch.cuda.synchronize()
        return [float(start.elapsed_time(end)) for start, end in self._steps]
