"""Streams, events, graphs and pools of a double, under whatever class names the vendor uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.doubles.driver import Driver, Queue

if TYPE_CHECKING:
    from tests.doubles.module import DeviceModule


def classes(
    module: DeviceModule, graph_class: str, *, reads_priorities: bool, shares_events: bool = False
) -> dict[str, type]:
    """The vendor's classes over one module, as plain classes to be made strict."""
    stream = _stream_class(module, reads_priorities=reads_priorities)
    graph, capture = _graph_classes(module, stream)
    return {
        "Stream": stream,
        "Event": _event_class(module.driver, shares_events=shares_events),
        graph_class: graph,
        "graph": capture,
        "MemPool": _pool_class(module),
        "device": _device_class(module),
    }


def _stream_class(module: DeviceModule, *, reads_priorities: bool) -> type:
    driver = module.driver

    class Stream:
        def __init__(self, device: object = None, priority: int = 0, **kwargs: object) -> None:
            module._lazy_init()
            if not (-5 if reads_priorities else -1) <= priority <= 0:
                raise RuntimeError(f"Expected stream priority to be less than or equal to 0, got {priority}")
            self._queue = Queue(module._index(device), priority)
            driver.queues.append(self._queue)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Stream) and self._queue is other._queue

        def __hash__(self) -> int:
            return id(self._queue)

        @property
        def cuda_stream(self) -> int:
            return id(self._queue)

        musa_stream = npu_stream = sycl_queue = cuda_stream

        def query(self) -> bool:
            return driver.now >= self._queue.until

        def synchronize(self) -> None:
            driver.now = max(driver.now, self._queue.until)

        def wait_event(self, event: object) -> None:
            event.wait(self)  # type: ignore[attr-defined]

        def wait_stream(self, stream: object) -> None:
            self._queue.until = max(self._queue.until, stream._queue.until)  # type: ignore[attr-defined]

        if reads_priorities:

            @staticmethod
            def priority_range() -> tuple[int, int]:
                return (0, -5)

    return Stream


def _event_class(driver: Driver, *, shares_events: bool) -> type:
    class Event:
        def __init__(self, enable_timing: bool = False, *others: object) -> None:
            self._timing = enable_timing
            self._others = others
            self._at: float | None = None

        if shares_events:

            def ipc_handle(self) -> bytes:
                if not (len(self._others) > 1 and self._others[1]):
                    raise RuntimeError("invalid resource handle: the event was not made for other processes")
                return id(self).to_bytes(8, "little")

            @classmethod
            def from_ipc_handle(cls, device: object, handle: object) -> object:
                found = cls()
                found.made_from = (device, handle)  # type: ignore[attr-defined]
                return found

        def record(self, stream: object = None) -> None:
            queue = driver.current_queues[driver.current] if stream is None else stream._queue  # type: ignore[attr-defined]
            self._at = max(driver.now, queue.until)

        def query(self) -> bool:
            return self._at is None or driver.now >= self._at

        def synchronize(self) -> None:
            driver.now = max(driver.now, self._at or 0.0)

        def wait(self, stream: object = None) -> None:
            queue = driver.current_queues[driver.current] if stream is None else stream._queue  # type: ignore[attr-defined]
            queue.until = max(queue.until, self._at or 0.0)

        def elapsed_time(self, end_event: object) -> float:
            if not (self._timing and end_event._timing):  # type: ignore[attr-defined]
                raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
            return end_event._at - self._at  # type: ignore[attr-defined, no-any-return]

    return Event


def _graph_classes(module: DeviceModule, stream_class: type) -> tuple[type, type]:
    """A graph, and the context that captures one."""
    driver = module.driver

    class Graph:
        def __init__(self) -> None:
            module._lazy_init()
            self.index = driver.current
            self._captured = False

        def replay(self) -> None:
            if not self._captured:
                raise RuntimeError("Called replay() without a preceding successful capture.")
            driver.submit(1.0)

        def reset(self) -> None:
            self._captured = False

    class graph:  # the vendor's name
        def __init__(
            self,
            graph: object,
            pool: object = None,
            stream: object = None,
            capture_error_mode: str = "global",
            *others: object,
        ) -> None:
            self._only_this_thread = capture_error_mode == "global"
            if stream is None:
                module.capture_stream = module.capture_stream or stream_class()
            self._stream = stream or module.capture_stream
            self._graph = graph
            self._graph.pool_given = pool  # type: ignore[attr-defined]

        def __enter__(self) -> None:
            self._before = driver.current_queues[driver.current]
            if self._stream._queue.index != driver.current:  # type: ignore[attr-defined]
                raise RuntimeError("capture on another device's stream")
            driver.current_queues[driver.current] = self._stream._queue  # type: ignore[attr-defined]
            self._stream._queue.capturing = True  # type: ignore[attr-defined]
            if self._only_this_thread:
                driver.only_thread = threading.get_ident()

        def __exit__(self, *error: object) -> None:
            self._stream._queue.capturing = False  # type: ignore[attr-defined]
            driver.only_thread = None
            self._graph._captured = True  # type: ignore[attr-defined]
            driver.current_queues[driver.current] = self._before

    return Graph, graph


def _pool_class(module: DeviceModule) -> type:
    class MemPool:
        def __init__(self, *arguments: object) -> None:
            module._lazy_init()

    return MemPool


def _device_class(module: DeviceModule) -> type:
    driver = module.driver

    class device:  # the vendor's name
        def __init__(self, device: object) -> None:
            self._device = device

        def __enter__(self) -> None:
            module._lazy_init()
            self._before, driver.current = driver.current, module._index(self._device)

        def __exit__(self, *error: object) -> None:
            driver.current = self._before

    return device


@contextmanager
def use_stream(driver: Driver, stream: object) -> Iterator[None]:
    """What a module's ``stream(stream)`` does: its device is current inside, after it the one at entry."""
    queue: Queue = stream._queue  # type: ignore[attr-defined]
    device = driver.current
    before, there = driver.current_queues[device], driver.current_queues[queue.index]
    driver.current, driver.current_queues[queue.index] = queue.index, queue
    try:
        yield
    finally:
        driver.current_queues[queue.index] = there
        driver.current, driver.current_queues[device] = device, before


@contextmanager
def use_pool(driver: Driver, pool: object) -> Iterator[None]:
    """What a module's ``use_mem_pool(pool, device)`` does."""
    driver.pool_in_use = pool
    try:
        yield
    finally:
        driver.pool_in_use = None
