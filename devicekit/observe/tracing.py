"""A span for every call of a device's hooks: which hook, how long, how many bytes, whether it failed.

::

    with Tracer(device) as tracer:
        engine.step()
    write_chrome_trace("trace.json", tracer.spans)     # open in chrome://tracing or ui.perfetto.dev

While a tracer is installed, the backend's hooks go through the plugin manager; without one they are called
directly, and tracing costs nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from devicekit.contract import hookimpl
from devicekit.contract.hooks import HOOKS
from devicekit.contract.spec import HookKind
from devicekit.device import Device
from devicekit.ranges import whole


@dataclass(frozen=True, slots=True)
class Span:
    """One call of one hook."""

    hook: str
    backend: str
    index: int | None  # the device's; None for hooks that take none
    started: float  # seconds of `time.perf_counter`
    seconds: float
    bytes: int | None  # handed back by a releasing hook, or in the tensor that came back; otherwise None
    thread: int
    error: str | None  # type and text of what it raised


class Tracer:
    """Records the hooks of one backend in a ring buffer of ``capacity`` spans.

    Args:
        device: every device of its backend is seen; the bytes that releasing hooks give back are this one's.
        hooks: which ones to trace; every one that the backend has if not given.

    Raises:
        ValueError: the contract has no such hook.
    """

    def __init__(self, device: Device, *, capacity: int = 65_536, hooks: Iterable[str] | None = None) -> None:
        whole("capacity", capacity, most=sys.maxsize)
        wanted = frozenset(HOOKS if hooks is None else hooks)
        self.device = device
        self._hooks = [hook for hook in HOOKS if hook in wanted and device.supports(hook)]
        if unknown := wanted - frozenset(HOOKS):
            raise ValueError(f"The device contract has no hook {', '.join(sorted(unknown))}.")
        self._spans: deque[Span] = deque(maxlen=capacity)
        self._busy = threading.local()  # .here: this thread reads statistics for a span
        self._observer = _observer(self, self._hooks)

    @property
    def spans(self) -> Sequence[Span]:
        """The latest spans, in the order in which the calls ended."""
        return tuple(self._spans)

    def install(self) -> None:
        """Start tracing."""
        self.device.backend.add_observer(self._observer)

    def remove(self) -> None:
        """Stop tracing; the spans stay."""
        self.device.backend.remove_observer(self._observer)

    def __enter__(self) -> Tracer:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _call(self, hook: str, index: int | None) -> Generator[None, object, object]:
        if self._busy.__dict__.get("here"):
            return (yield)
        before = self._reserved(hook)
        started = time.perf_counter()
        failure: str | None = None
        result: object = None
        try:
            result = yield
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            seconds = time.perf_counter() - started
            size = _size(result, before, self._reserved(hook) if failure is None else None)
            thread = threading.get_ident()
            self._spans.append(Span(hook, self.device.name, index, started, seconds, size, thread, failure))
        return result

    def _reserved(self, hook: str) -> int | None:
        if HOOKS[hook].kind is not HookKind.RELEASING:
            return None
        self._busy.here = True
        try:
            if hook == "empty_host_cache":
                return self.device.host_memory_stats().reserved
            return self.device.memory_stats().reserved
        finally:
            self._busy.here = False


def _observer(tracer: Tracer, hooks: Iterable[str]) -> object:
    """An object whose methods wrap the hooks: a wrapper may take fewer arguments than the hook."""
    wrap = hookimpl(wrapper=True)
    methods = {
        hook: wrap(_with_index(tracer, hook) if "index" in HOOKS[hook].parameters else _plain(tracer, hook))
        for hook in hooks
    }
    return type("TracingObserver", (), methods)()


def _with_index(tracer: Tracer, hook: str) -> Callable[..., object]:
    def traced(self: object, index: int) -> Generator[None, object, object]:
        return (yield from tracer._call(hook, index))

    return traced


def _plain(tracer: Tracer, hook: str) -> Callable[..., object]:
    def traced(self: object) -> Generator[None, object, object]:
        return (yield from tracer._call(hook, None))

    return traced


def _size(result: object, before: int | None, after: int | None) -> int | None:
    if before is not None and after is not None:
        return before - after
    return result.nbytes if isinstance(result, torch.Tensor) else None
