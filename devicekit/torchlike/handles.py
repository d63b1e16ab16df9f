"""Graphs and memory pools of torch's device modules in the shape of the contract.

Streams and events need no adapter: torch's own classes satisfy the contract on every vendor that has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# What torch documents where a vendor does not publish the range of stream priorities.
_DEFAULT_PRIORITIES = (0, -1)  # lowest and highest


class TorchGraph:
    """A captured graph on one device."""

    def __init__(self, module: ModuleType, graph_class: str, index: int, pool: object | None = None) -> None:
        self._module = module
        self._index = index
        self._pool = pool  # None: its own
        self._mode = _mode(module)
        with module.device(index):
            self._graph = getattr(module, graph_class)()
        self._stream: object = None

    @contextmanager
    def capture(self) -> Iterator[None]:
        module = self._module
        if self._stream is None:
            # The module's default capture stream belongs to whichever device captured first.
            self._stream = module.Stream(self._index)
        # Positionally: the first parameter is named after the vendor.
        with module.device(self._index), module.graph(self._graph, self._pool, self._stream, **self._mode):
            yield

    def replay(self) -> None:
        self._graph.replay()

    def reset(self) -> None:
        self._graph.reset()


def _mode(module: ModuleType) -> dict[str, str]:
    """What lets other threads allocate while one captures: by default vendors that know modes refuse both."""
    try:
        known = inspect.signature(module.graph).parameters
    except (AttributeError, TypeError, ValueError):
        return {}
    return {"capture_error_mode": "thread_local"} if "capture_error_mode" in known else {}


class TorchMemoryPool:
    """A private pool of the device's allocator."""

    def __init__(self, module: ModuleType, index: int) -> None:
        self._module = module
        self._index = index
        self._pool = module.MemPool()

    @contextmanager
    def use(self) -> Iterator[None]:
        with self._module.use_mem_pool(self._pool, self._index):
            yield


def clamp_priority(module: ModuleType, priority: int) -> int:
    """``priority`` brought into the range that the vendor's streams accept; lower numbers run first."""
    read_range = getattr(module.Stream, "priority_range", None)
    lowest, highest = _DEFAULT_PRIORITIES if read_range is None else read_range()
    return int(max(highest, min(lowest, priority)))
