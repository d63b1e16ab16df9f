"""Which accelerator there is, which is current, and waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch

import devicekit
from devicekit.contract.errors import UnsupportedHook

Which = torch.device | str | int | None


def is_available() -> bool:
    """Whether the default backend drives an accelerator, and not the host's own processor."""
    return devicekit.accelerator_available()


def device_count() -> int:
    """How many accelerators this process can see."""
    return devicekit.accelerator_count()


def current_accelerator(check_available: bool = False) -> torch.device | None:
    """The accelerator's type, without an index; ``None`` where there is none.

    Args:
        check_available: kept for the signature: a default backend is always one whose hardware is here.
    """
    return torch.device(devicekit.current_device().torch_device.type) if is_available() else None


def current_device_index() -> int:
    """The index that is current in the calling thread."""
    return devicekit.current_device().index


current_device_idx = current_device_index


def set_device_index(device: torch.device | str | int, /) -> None:
    """Make a device the calling thread's current one, for good. A negative index changes nothing.

    Raises:
        UnsupportedHook: the backend cannot switch devices.
    """
    if not isinstance(device, int) or device >= 0:
        devicekit.make_current(device)


set_device_idx = set_device_index


class device_index:  # torch's own name
    """A context in which a device is the calling thread's current one; ``None`` changes nothing."""

    def __init__(self, device: int | None, /) -> None:
        self.idx = device
        self._left = ExitStack()

    def __enter__(self) -> None:
        if self.idx is not None:
            self._left.enter_context(devicekit.device_for(self.idx).current())

    def __exit__(self, *error: object) -> None:
        self._left.close()


def synchronize(device: Which = None, /) -> None:
    """Wait for all work on a device, the current one by default."""
    devicekit.device_for(device).synchronize()


def current_stream(device: Which = None, /) -> devicekit.Stream:
    """A device's current stream.

    Raises:
        UnsupportedHook: the backend has no streams.
    """
    return devicekit.device_for(device).current_stream()


def set_stream(stream: devicekit.Stream) -> None:
    """Make a stream current, for good.

    Raises:
        UnsupportedHook: the backend cannot, or its contract is older than that.
    """
    device = devicekit.current_device()
    own: Callable[[devicekit.Stream], None] | None = getattr(device, "set_current_stream", None)
    if own is None:
        raise UnsupportedHook(
            f"Backend {device.backend.label} sets a stream in a context only: Device.use_stream.",
            backend=device.name,
            hook="set_current_stream",
        )
    own(stream)


def get_device_capability(device: Which = None, /) -> dict[str, object]:
    """What a device can compute with, as torch's own function says it.

    Raises:
        UnsupportedHook: neither torch nor the backend knows.
    """
    chosen = devicekit.device_for(device)
    own = getattr(torch.accelerator, "get_device_capability", None)
    current = torch.accelerator.current_accelerator() if own is not None else None
    if own is None or current is None or current.type != chosen.torch_device.type:
        raise UnsupportedHook(
            f"Backend {chosen.backend.label} does not say which types it computes with.",
            backend=chosen.name,
            hook="device_properties",
        )
    found: dict[str, object] = own(chosen.index)
    return found
