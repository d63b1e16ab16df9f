"""The suite's own road to the device, which never goes through a hook that is being judged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol, cast, runtime_checkable

import torch

from devicekit_conformance.context import Failure
from devicekit_conformance.probe_work import Worker

_IMPOSSIBLE = 1 << 60  # bytes; more than any machine can map
_GIB = 1 << 30
_MORE_THAN_ANY = 16 << 10  # GiB; no device has as much, and one that gives it has promised what it lacks


class Token(Protocol):
    """Work that was submitted."""

    def done(self) -> bool:
        """Whether the work has finished. Does not wait."""


@runtime_checkable
class Probe(Protocol):
    """What the suite needs of a device. A simulator or vendor may supply one; the report then names it."""

    def tensor(self, size: int, index: int) -> torch.Tensor:
        """``size`` live bytes (uint8) on the device, contents undefined."""

    def initialised(self) -> bool | None:
        """Whether a context exists in this process; ``None`` if that cannot be seen from outside."""

    def current_index(self) -> int | None:
        """The calling thread's current device, asked without any hook.

        ``None`` if there is no such thing, or if nothing has used the device yet: many vendors' own functions
        initialise it when they are asked.
        """

    def submit(self, index: int, stream: object | None) -> Token | None:
        """Queue work that takes a while on a stream (default: the current one); ``None`` if it cannot."""

    def exhaust(self, index: int) -> BaseException:
        """Ask for more memory than there is, and return what the runtime raised. Holds nothing afterwards.

        A device that promises more than it has, as a host does, is asked for what it cannot even promise.
        """

    def random(self, index: int, count: int) -> Sequence[float]:
        """Numbers from the device's default generator."""

    def held(self, index: int) -> int | None:
        """Bytes that this process's allocator holds from the driver; ``None`` if that cannot be seen."""

    def pinned(self, tensor: torch.Tensor) -> bool | None:
        """Whether a host tensor is page-locked; ``None`` if that cannot be seen."""


class TorchProbe:
    """Plain torch on the backend's device type: its module where it has one, torch's generic classes elsewhere."""

    def __init__(self, device_type: str, indexed: bool) -> None:
        self._type = device_type
        self._indexed = indexed
        self._module = None if device_type == "cpu" else _module_of(device_type)
        self._workers: dict[int, Worker | None] = {}

    @property
    def runtime(self) -> object | None:
        """torch's own module for the device type; ``None`` where there is none, as for cpu."""
        return self._module

    def tensor(self, size: int, index: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device(index))

    def initialised(self) -> bool | None:
        asked = getattr(self._module, "is_initialized", None)
        return bool(asked()) if callable(asked) else None

    def current_index(self) -> int | None:
        if self.initialised() is False:
            return None
        asked = getattr(self._module, "current_device", None)
        if callable(asked):
            return int(asked())
        if self._type == "cpu" or not self._indexed:
            return None
        with contextlib.suppress(RuntimeError, AttributeError):
            if (
                current := torch.accelerator.current_accelerator()
            ) is not None and current.type == self._type:
                return int(torch.accelerator.current_device_index())
        return None

    def submit(self, index: int, stream: object | None) -> Token | None:
        if self._type == "cpu":
            return _work_on_host(self._device(index))
        if index not in self._workers:
            self._workers[index] = self._worker(index)
        worker = self._workers[index]
        if worker is None:
            return None
        with self._at(index), contextlib.nullcontext() if stream is None else self._on(stream):
            return worker.submit()

    def exhaust(self, index: int) -> BaseException:
        kept: list[torch.Tensor] = []
        try:
            if self._type != "cpu":
                while len(kept) < _MORE_THAN_ANY:
                    kept.append(self.tensor(_GIB, index))
                kept.clear()  # it promises more than it has, as a host does
            self.tensor(_IMPOSSIBLE, index)
        except Exception as error:  # whatever the runtime calls it is what the backend must recognise
            return error.with_traceback(None)
        raise Failure(f"the device gave {_IMPOSSIBLE >> 30:,} GiB at once and never ran out of memory")

    def random(self, index: int, count: int) -> Sequence[float]:
        found: list[float] = torch.rand(count, device=self._device(index)).cpu().tolist()
        return found

    def held(self, index: int) -> int | None:
        asked = getattr(self._module, "memory_reserved", None)
        return int(asked(index)) if callable(asked) else None

    def pinned(self, tensor: torch.Tensor) -> bool | None:
        return tensor.is_pinned()

    def _device(self, index: int) -> torch.device:
        return torch.device(self._type, index) if self._indexed else torch.device(self._type)

    def _worker(self, index: int) -> Worker | None:
        device = self._device(index)
        with self._at(index):
            try:
                return Worker(device, self._events(device), self._other_stream(device), self._on)
            except (RuntimeError, NotImplementedError):
                return None  # a device on which nothing can be computed

    def _at(self, index: int) -> contextlib.AbstractContextManager[object]:
        """A block in which the device is current, by torch's own functions, where there is such a thing."""
        if not self._indexed:
            return contextlib.nullcontext()
        found = getattr(self._module, "device", None)
        if callable(found):
            return cast("contextlib.AbstractContextManager[object]", found(index))
        generic = getattr(torch.accelerator, "device_index", None)
        ours = getattr(torch.accelerator, "current_accelerator", lambda: None)()
        if callable(generic) and ours is not None and ours.type == self._type:
            return cast("contextlib.AbstractContextManager[object]", generic(index))
        return contextlib.nullcontext()

    def _on(self, stream: object) -> contextlib.AbstractContextManager[object]:
        """A block in which a stream is current: the vendor's function, or a torch.Stream as it is."""
        chosen = getattr(self._module, "stream", None)
        if callable(chosen):
            return cast("contextlib.AbstractContextManager[object]", chosen(stream))
        if hasattr(stream, "__enter__"):
            return cast("contextlib.AbstractContextManager[object]", stream)
        raise NotImplementedError("nothing makes a stream current")

    def _events(self, device: torch.device) -> Callable[[], object] | None:
        return _first_that_works(getattr(self._module, "Event", None), lambda: torch.Event(device=device))

    def _other_stream(self, device: torch.device) -> Callable[[], object] | None:
        return _first_that_works(getattr(self._module, "Stream", None), lambda: torch.Stream(device=device))


class _HostToken:
    def __init__(self, result: torch.Tensor, expected: float) -> None:
        self._result, self._expected = result, expected

    def done(self) -> bool:
        return float(self._result[0, 0]) == self._expected


def _work_on_host(device: torch.device) -> Token:
    ones = torch.ones(64, 64, device=device)
    return _HostToken(ones @ ones, 64.0)


def _module_of(device_type: str) -> object | None:
    """torch's module for a device type; a device may do without."""
    try:
        return cast("object", torch.get_device_module(device_type))
    except RuntimeError:
        return None


def _first_that_works(*makers: object) -> Callable[[], object] | None:
    for make in makers:
        if callable(make):
            try:
                make()
            except Exception:  # events and streams are optional, and what their absence raises differs
                continue
            return cast("Callable[[], object]", make)
    return None
