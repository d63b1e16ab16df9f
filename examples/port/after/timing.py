"""How long steps take on the device, without waiting in the middle of one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import devicekit


class StepTimer:
    """Times steps; the figures are there once somebody asks."""

    def __init__(self) -> None:
        self._steps: list[tuple[Any, Any]] = []  # events that time, which have elapsed_time
        self._milliseconds: list[float] = []  # by the clock, where there are no events

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step."""
        if not devicekit.current_device().supports("create_event"):
            began = time.perf_counter()
            yield
            self._milliseconds.append((time.perf_counter() - began) * 1000)
            return
        start = devicekit.current_device().create_event(timing=True)
        end = devicekit.current_device().create_event(timing=True)
        start.record()
        yield
        end.record()
        self._steps.append((start, end))

    def milliseconds(self) -> list[float]:
        """Of each step so far."""
        devicekit.current_device().synchronize()
        return self._milliseconds + [float(start.elapsed_time(end)) for start, end in self._steps]
