"""Work for a device that takes a while, and ways to see from outside whether it has finished.

A hook that waits is judged by work that is still running when it is asked. Whether it runs can be seen by an
event, or without one by data that only finished work can have written: a copy to the host that stands behind the
work in its queue, or one that another stream makes when it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch

_GOAL = 0.15  # seconds of work: longer than any call takes to return, short enough to be done often
_SMALLEST, _LARGEST = 128, 1024  # matrices for a processor, and for a fast device
_FEWEST_STEPS, _MANY_STEPS, _MOST_STEPS = 4, 64, 4096  # larger matrices rather than many steps
_UNSET = -1.0


class Pending(Protocol):
    """Work that was submitted."""

    def done(self) -> bool:
        """Whether the work has finished. Does not wait."""


On = Callable[[object], AbstractContextManager[object]]  # makes a stream current for a block


class Worker:
    """Submits work to one device, by the first way of watching it that shows work as running.

    Args:
        device: where.
        events: makes an event of the device, or ``None`` where it has none.
        other_stream: makes a stream of the device, or ``None`` where it has one queue only.
    """

    def __init__(
        self,
        device: torch.device,
        events: Callable[[], object] | None,
        other_stream: Callable[[], object] | None,
        on: On,
    ) -> None:
        self._device, self._on = device, on
        self._size = _SMALLEST
        self._source = self._matrix(1.0 / self._size)
        self._step = self._fitting_step()
        self._steps = self._enough_steps()
        roads: list[Callable[[torch.Tensor], Pending]] = [self._copied_to_pinned, self._copied_to_host]
        if events is not None:
            make = events
            roads.append(lambda result: _Event(make))
        if other_stream is not None:
            stream = other_stream()
            roads.append(lambda result: _ReadElsewhere(result, stream, on))
        self._watch = self._seeing(roads)

    def submit(self) -> Pending:
        """Queue work on the current stream."""
        return self._watch(self._run())

    def _run(self) -> torch.Tensor:
        """A chain in which each step needs the one before; the last writes 1, over what was not 1."""
        result = self._matrix(_UNSET)
        value: torch.Tensor = self._source
        for _ in range(self._steps):
            value = self._step(value)
        return result.copy_(value).mul_(self._size)

    def _matrix(self, value: float) -> torch.Tensor:
        return torch.full((self._size, self._size), value, device=self._device)

    def _fitting_step(self) -> Callable[[torch.Tensor], torch.Tensor]:
        steps: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
            lambda value: value @ self._source,
            lambda value: (value + self._source).mul_(0.5),
        )
        for step in steps:
            try:
                if abs(float(step(self._source)[0, 0].cpu()) * self._size - 1.0) < 0.01:
                    return step
            except (RuntimeError, NotImplementedError):
                continue  # a small device has few operators
        raise NotImplementedError("the device neither multiplies nor adds")

    def _enough_steps(self) -> int:
        self._steps = _FEWEST_STEPS
        while self._steps < _MOST_STEPS:
            started = time.perf_counter()
            float(self._run()[0, 0].cpu())
            seconds = time.perf_counter() - started
            if seconds >= _GOAL:
                break
            wanted = 1.3 * self._steps * _GOAL / seconds
            if wanted > _MANY_STEPS and self._size < _LARGEST:
                self._size, self._steps = 2 * self._size, _FEWEST_STEPS
                self._source = self._matrix(1.0 / self._size)
            else:
                self._steps = min(_MOST_STEPS, max(self._steps + 1, min(8 * self._steps, int(wanted))))
        return self._steps

    def _seeing(self, roads: list[Callable[[torch.Tensor], Pending]]) -> Callable[[torch.Tensor], Pending]:
        """The first road on which work is seen running. If there is none, work is done when it is submitted."""
        usable = []
        for road in roads:
            try:
                seen = road(self._run())
                running = not seen.done()
                self._settle()
            except (RuntimeError, NotImplementedError, TypeError, AttributeError, AssertionError):
                continue
            if running:
                return road
            usable.append(road)
        if not usable:
            raise NotImplementedError("nothing shows whether the device's work has finished")
        return usable[0]

    def _settle(self) -> None:
        float(self._run()[0, 0].cpu())

    def _copied_to_pinned(self, result: torch.Tensor) -> Pending:
        mark = torch.full((1,), _UNSET).pin_memory()
        if not mark.is_pinned():
            raise NotImplementedError("nothing is pinned")
        mark.copy_(result[:1, 0], non_blocking=True)
        return _Written(mark, result)

    def _copied_to_host(self, result: torch.Tensor) -> Pending:
        mark = torch.full((1,), _UNSET)
        mark.copy_(result[:1, 0], non_blocking=True)
        return _Written(mark, result)


class _Written:
    """Work whose result is copied to the host behind it; the copy's arrival is the end of the work."""

    def __init__(self, mark: torch.Tensor, result: torch.Tensor) -> None:
        self._mark, self._result = mark, result

    def done(self) -> bool:
        return abs(float(self._mark[0]) - 1.0) < 0.01


class _Event:
    """Work with an event behind it."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._event = make()
        record, query = getattr(self._event, "record", None), getattr(self._event, "query", None)
        if not callable(record) or not callable(query):
            raise NotImplementedError("an event without record and query")
        self._query: Callable[[], object] = query
        record()

    def done(self) -> bool:
        return bool(self._query())


class _ReadElsewhere:
    """Work whose result is read by a stream that does not wait for it."""

    def __init__(self, result: torch.Tensor, stream: object, on: On) -> None:
        self._result, self._stream, self._on = result, stream, on

    def done(self) -> bool:
        with self._on(self._stream):
            return abs(float(self._result[0, 0].cpu()) - 1.0) < 0.01
