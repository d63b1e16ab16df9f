"""Honest events, graphs, handles and locked memory that promise no more than the contract does."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from devicekit_conformance.selftest.building import Call

__all__ = ["lock_pages", "numbered", "on_locked_pages", "once", "strict_graph", "ticking", "unlock_pages"]

_TICK = 16  # milliseconds


def ticking(call: Call) -> object:
    event: Any = call.forward()
    exact = event.elapsed_time
    event.elapsed_time = lambda end: float(math.trunc(exact(end) / _TICK) * _TICK)
    return event


class _StrictGraph:
    """Captures once, then replays; after a block that raised it can only be reset."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._state = "empty"

    @contextmanager
    def capture(self) -> Iterator[None]:
        self._refuse_unless("empty")
        self._state = "broken"
        with self._graph.capture():
            yield
        self._state = "full"

    def replay(self) -> None:
        self._refuse_unless("full")
        self._graph.replay()

    def reset(self) -> None:
        self._graph.reset()
        self._state = "empty"

    def _refuse_unless(self, state: str) -> None:
        if self._state != state:
            raise RuntimeError(f"this graph is {self._state}")


def strict_graph(call: Call) -> object:
    return _StrictGraph(call.forward())


def numbered(call: Call) -> object:
    return (os.getpid(), call.number), call.forward()


def once(call: Call) -> object:
    number, inside = call.arguments[0]
    if call.memory.setdefault(str(number), False):
        raise ValueError("this handle was imported already")
    call.memory[str(number)] = True
    return call.honest(inside)


_locked: dict[
    int, tuple[int, int]
] = {}  # the pages of each registered address, from the first up to the last


def _pages_of(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start // mmap.PAGESIZE, (start + last * tensor.itemsize) // mmap.PAGESIZE


def lock_pages(call: Call) -> object:
    (tensor,) = call.arguments
    if tensor.device.type == "cpu" and tensor.numel():
        first, last = _pages_of(tensor)
        if any(page <= last and first <= end for page, end in _locked.values()):
            raise ValueError("a page of this memory is locked already")
    call.forward()
    _locked[tensor.data_ptr()] = _pages_of(tensor)
    return None


def unlock_pages(call: Call) -> object:
    call.forward()
    del _locked[call.arguments[0].data_ptr()]
    return None


def on_locked_pages(call: Call) -> object:
    (tensor,) = call.arguments
    if call.forward() or tensor.device.type != "cpu":
        return call.forward()
    pages = _pages_of(tensor) if tensor.numel() else ()
    return all(any(page <= one <= end for page, end in _locked.values()) for one in pages)
