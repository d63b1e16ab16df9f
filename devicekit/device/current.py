"""Finds the device that code means when it names none, or names one in the way that torch's functions take.

Code that was written for a device module of torch passes no device, an index, a ``torch.device``, a string or a
tensor. These functions read each of them as torch does, so that such code keeps its meaning when it moves to
`Device`: without an index it is the calling thread's current device, not device 0.
"""

from __future__ import annotations

import torch

from devicekit.contract.errors import BackendUnavailable
from devicekit.device.handle import Device
from devicekit.device.opening import device_of, get_device


def current_device() -> Device:
    """The default backend's device that is current in the calling thread.

    `devicekit.get_device` answers with a fixed device; this follows `Device.current` and the vendor's own
    ``set_device``.

    Raises:
        As `devicekit.get_device`.
    """
    return _current_of(get_device())


def device_for(device: Device | str | torch.device | torch.Tensor | int | None = None) -> Device:
    """The device that a function of torch means by its ``device`` argument.

    Args:
        device: ``None`` or a negative index for the current device; an index of the default backend; a
            ``torch.device`` or a string, which without an index mean the current device of that kind; or a tensor.

    Raises:
        As `devicekit.get_device`.
    """
    if device is None or isinstance(device, Device):
        return current_device() if device is None else device
    if isinstance(device, int):
        return current_device() if device < 0 else device_of(get_device().backend, device)
    if isinstance(device, torch.Tensor):
        device = device.device
    opened = get_device(device)
    names_index = ":" in device if isinstance(device, str) else device.index is not None
    return opened if names_index else _current_of(opened)


def make_current(device: Device | str | torch.device | torch.Tensor | int) -> Device:
    """Make a device the calling thread's current one, for good, as ``set_device`` of torch's modules does.

    Args:
        device: as for `device_for`.

    Raises:
        UnsupportedHook: the backend cannot switch devices, and this is not its only one.
    """
    chosen = device_for(device)
    chosen.make_current()
    return chosen


def accelerator_available() -> bool:
    """Whether the default backend drives an accelerator: False where it is the host's own processor, or none.

    Raises:
        SelectionError, ContractError: hardware is there, and its plugin failed; see `devicekit.select`.
    """
    return accelerator_count() > 0


def accelerator_count() -> int:
    """How many accelerators of the default backend this process can see; 0 where that is the host's processor.

    Raises:
        As `accelerator_available`.
    """
    try:
        backend = get_device().backend
    except BackendUnavailable:  # nothing that is installed claims hardware
        return 0
    if backend.manifest.host:
        return 0
    counted = backend.device_count
    return 1 if counted is None else counted


def _current_of(device: Device) -> Device:
    if not device.backend.manifest.indexed or not device.supports("current_index"):
        return device
    index = device.current_index()
    return device if index == device.index else device_of(device.backend, index)


def on_accelerator(what: torch.Tensor | torch.device | str) -> bool:
    """Whether a tensor is on an accelerator, of whatever vendor. Opens nothing.

    Args:
        what: a tensor, or a device as torch writes it, with an index or without.

    Returns:
        False for the host's own memory, and for tensors without any ("meta").

    Raises:
        RuntimeError: torch knows no such device.
    """
    device = what.device if isinstance(what, torch.Tensor) else torch.device(what)
    return device.type not in ("cpu", "meta")
