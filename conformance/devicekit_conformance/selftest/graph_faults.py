"""Faults in graphs and pools."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from devicekit.contract import DeviceGraph, MemoryPool, hookimpl
from devicekit.testing.graphs import SimGraph
from devicekit.testing.sim_backend import SimPool
from devicekit_conformance.selftest.honest import Honest, machine, overwrite_live_memory


class CapturingNeedsUse(Honest):
    """Asking for capture before the first use raises."""

    caught_by = "DK-STREAM-010"

    @hookimpl
    def is_capturing(self, index: int) -> bool:
        if not machine().initialized:
            raise RuntimeError("the device is not initialised")
        return super().is_capturing(index)


class NeverCapturing(Honest):
    """is_capturing() is always False."""

    caught_by = "DK-STREAM-011"

    @hookimpl
    def is_capturing(self, index: int) -> bool:
        return False


class EagerGraphs(Honest):
    """Work runs while it is captured."""

    caught_by = "DK-STREAM-011"

    @hookimpl
    def create_graph(self, index: int, pool: object | None = None) -> DeviceGraph:
        machine().initialize()
        return _Eager(machine().device(index))


class _Eager(SimGraph):
    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        with super().capture():
            yield
        self.replay()


class EmptyingBreaksGraphs(Honest):
    """Emptying the cache drops what graphs hold."""

    caught_by = "DK-STREAM-012"

    def __init__(self) -> None:
        self._graphs: list[SimGraph] = []

    @hookimpl
    def create_graph(self, index: int, pool: object | None = None) -> DeviceGraph:
        machine().initialize()
        self._graphs.append(SimGraph(machine().device(index)))
        return self._graphs[-1]

    @hookimpl
    def empty_cache(self) -> None:
        super().empty_cache()
        for graph in self._graphs:
            graph.reset()


class PoolsForget(Honest):
    """What a pool served is given away when its block is left."""

    caught_by = "DK-STREAM-013"

    @hookimpl
    def memory_pool(self, index: int) -> MemoryPool:
        machine().initialize()
        return _Forgetting(index)


class _Forgetting(SimPool):
    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        with super().use():
            yield
        overwrite_live_memory()


class SpoilsTheKVPool(Honest):
    """Asking whether a graph is captured damages floats, which only an engine keeps."""

    caught_by = "DK-ENGINE-001"

    @hookimpl
    def is_capturing(self, index: int) -> bool:
        overwrite_live_memory(torch.float32)
        return super().is_capturing(index)
