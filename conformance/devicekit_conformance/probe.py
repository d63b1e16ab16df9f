"""The suite's own road to the device, which never goes through a hook that is being judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

_HOST_IMPOSSIBLE = 1 << 60  # bytes; more than any machine can map


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
        """The calling thread's current device, asked without any hook; ``None`` if there is no such thing."""

    def submit(self, index: int, stream: object | None) -> Token | None:
        """Queue work that takes a while on a stream (default: the current one); ``None`` if it cannot."""

    def exhaust(self, index: int) -> BaseException:
        """Ask for more memory than there is, and return what the runtime raised. Holds nothing afterwards."""

    def random(self, index: int, count: int) -> Sequence[float]:
        """Numbers from the device's default generator."""

    def held(self, index: int) -> int | None:
        """Bytes that this process's allocator holds from the driver; ``None`` if that cannot be seen."""

    def pinned(self, tensor: torch.Tensor) -> bool | None:
        """Whether a host tensor is page-locked; ``None`` if that cannot be seen."""


class TorchProbe:
    """Plain torch on the backend's device type."""

    def __init__(self, device_type: str, indexed: bool) -> None:
        self._type = device_type
        self._indexed = indexed
        self._module: object | None = None if device_type == "cpu" else torch.get_device_module(device_type)

    def tensor(self, size: int, index: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device(index))

    def initialised(self) -> bool | None:
        asked = getattr(self._module, "is_initialized", None)
        return bool(asked()) if callable(asked) else None

    def current_index(self) -> int | None:
        asked = getattr(self._module, "current_device", None)
        return int(asked()) if callable(asked) else None

    def submit(self, index: int, stream: object | None) -> Token | None:
        if not self._indexed:
            return _work_on_host(self._device(index))
        event_class = getattr(self._module, "Event", None)
        if not callable(event_class):
            return None
        event = event_class()
        with torch.device(self._device(index)):
            if stream is None:
                _matmuls()
                event.record()
            else:
                with self._on(stream):
                    _matmuls()
                    event.record(stream)
        return _EventToken(event)

    def exhaust(self, index: int) -> BaseException:
        kept = []
        size = _HOST_IMPOSSIBLE
        try:
            if self._indexed:
                size = 1 << 30
            while True:
                kept.append(self.tensor(size, index))
        except Exception as error:  # whatever the runtime calls it is what the backend must recognise
            return error.with_traceback(None)

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

    def _on(self, stream: object) -> torch.utils._contextlib._DecoratorContextManager:
        found: torch.utils._contextlib._DecoratorContextManager = getattr(self._module, "stream")(stream)  # noqa: B009
        return found


class _EventToken:
    def __init__(self, event: object) -> None:
        self._event = event

    def done(self) -> bool:
        query = getattr(self._event, "query", None)
        return bool(query()) if callable(query) else True


class _HostToken:
    def __init__(self, result: torch.Tensor, expected: float) -> None:
        self._result, self._expected = result, expected

    def done(self) -> bool:
        return float(self._result[0, 0]) == self._expected


def _matmuls() -> None:
    """Several milliseconds to a second of work on any device."""
    a = torch.ones(4096, 4096)
    for _ in range(20):
        a = (a @ a).clamp_(max=1.0)


def _work_on_host(device: torch.device) -> Token:
    ones = torch.ones(64, 64, device=device)
    return _HostToken(ones @ ones, 64.0)
