"""Honest events, graphs, handles, memory and first uses that promise no more than the contract does."""

from __future__ import annotations

import inspect
import math
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from devicekit.testing import MIB
from devicekit.testing.driver import Holder
from devicekit_conformance.selftest.building import Call
from devicekit_conformance.selftest.honest import machine

__all__ = [
    "exact_types",
    "lock_pages",
    "numbered",
    "on_locked_pages",
    "once",
    "strict_graph",
    "ticking",
    "unlock_pages",
    "watch",
]

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


def watch() -> None:
    """Initialising starts a thread, opens a file and takes memory for a context."""
    here, started = machine(), dict[str, object]()
    plain = here.initialize

    def initialize() -> None:
        plain()
        if not started:
            started["file"] = os.open(os.devnull, os.O_RDONLY)
            for device in here.devices:
                device.memory.take(Holder(os.getpid(), "context"), 24 * MIB)
            watch = threading.Thread(target=threading.Event().wait, name="watch", daemon=True)
            started["thread"] = watch
            watch.start()

    here.initialize = initialize  # type: ignore[method-assign]  # of the one machine here


def exact_types(call: Call) -> object:
    """Vendors' functions parse what they are given, and take nothing else."""
    kinds = {"int": int, "bool": bool, "float": float, "str": str}
    declared = list(inspect.signature(call.honest.func).parameters.values())[1:]  # type: ignore[attr-defined]
    for parameter, given in zip(declared, call.arguments, strict=True):
        if type(given) is not kinds.get(str(parameter.annotation), type(given)):
            raise TypeError(f"{parameter.name} is {parameter.annotation}, and not {given!r:.80}")
    return call.forward()
