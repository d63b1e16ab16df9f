"""Moves tensors between host and device, on a stream beside computation where the backend has streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from devicekit.contract.handles import Event, Stream
from devicekit.device import Device
from devicekit.residency.tensors import is_on

HOST = torch.device("cpu")


@dataclass(slots=True)
class Upload:
    """Tensors on their way to the device. Use or drop them only after `wait`."""

    tensors: list[torch.Tensor]
    _device: Device
    _event: Event | None = None

    def wait(self) -> list[torch.Tensor]:
        """Let the current stream wait for the copies; the host goes on."""
        if self._event is not None:
            self._device.current_stream().wait_event(self._event)
            self._event = None
        return self.tensors


class Transfer:
    """Copies tensors between the host and one device.

    Args:
        pin: page-lock host copies, where the backend can.
    """

    def __init__(self, device: Device, *, pin: bool = True) -> None:
        self.device = device
        hooks = ("create_stream", "use_stream", "current_stream", "create_event")
        #: False: the backend lacks streams, and each copy keeps the host waiting.
        self.asynchronous = all(device.supports(hook) for hook in hooks)
        #: Whether host copies are page-locked.
        self.pins = pin and device.supports("pin_memory")
        self.bytes_in = 0
        self.bytes_out = 0
        self._stream: Stream | None = None
        self._in_flight: deque[tuple[Event, Sequence[torch.Tensor]]] = deque()

    def pinned(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies on the host, page-locked if that is possible; tensors that are that already, as they are.

        Raises:
            HookError: the backend could not page-lock so much.
        """
        elsewhere = [tensor for tensor in tensors if not is_on(tensor, HOST)]
        fetched = iter(self.download(elsewhere) if elsewhere else ())
        return [self._pin(tensor) if is_on(tensor, HOST) else next(fetched) for tensor in tensors]

    def upload(self, tensors: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> Upload:
        """Begin to copy to the device; ``dtype`` converts floating-point tensors on the way.

        Tensors that are there already stay the same objects. If it raises, nothing was left behind.
        """
        made = [self._like(tensor, dtype) for tensor in tensors]
        pairs = [(new, old) for new, old in zip(made, tensors, strict=True) if new is not old]
        if not pairs:
            return Upload(made, self.device)
        self.bytes_in += sum(new.nbytes for new, _ in pairs)
        if not self.asynchronous:
            for new, old in pairs:
                new.copy_(old)
            return Upload(made, self.device)
        event = self._copy(pairs)
        # The sources live as long as they are read, whatever becomes of the module they came from.
        self._in_flight.append((event, tensors))
        return Upload(made, self.device, event)

    def download(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies on the host, complete when this returns. If it raises, nothing was left behind."""
        hosts = [self._pin(torch.empty_like(tensor, device=HOST)) for tensor in tensors]
        self.bytes_out += sum(host.nbytes for host in hosts)
        if not self.asynchronous:
            for host, tensor in zip(hosts, tensors, strict=True):
                host.copy_(tensor)
            return hosts
        self._copy(list(zip(hosts, tensors, strict=True))).synchronize()
        return hosts

    def settle(self) -> None:
        """Wait for copies under way, and drop every reference to them."""
        while self._in_flight:
            self._in_flight.popleft()[0].synchronize()

    def _copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Event:
        while self._in_flight and self._in_flight[0][0].query():
            self._in_flight.popleft()
        if self._stream is None:
            self._stream = self.device.create_stream()
        stream = self._stream
        # Memory that was just allocated may be what earlier work still reads: the allocator orders by stream, and
        # it was allocated on the current one.
        stream.wait_stream(self.device.current_stream())
        try:
            with self.device.use_stream(stream):
                for new, old in pairs:
                    new.copy_(old, non_blocking=True)
            event = self.device.create_event()
            event.record(stream)
        except BaseException:
            # What was made goes back to the allocator now, and must not be written to after that.
            stream.synchronize()
            raise
        return event

    def _like(self, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if is_on(tensor, self.device.torch_device) and tensor.dtype == wanted:
            return tensor
        return torch.empty_like(tensor, dtype=wanted, device=self.device.torch_device)

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.pins or not tensor.nbytes or tensor.is_pinned():
            return tensor
        return self.device.pin_memory(tensor)
