"""Tensors shared between processes by torch's own reductions, which vendors extend for their devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch.multiprocessing import reductions

from devicekit.contract import Event


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A picklable handle. The exporting process must keep the tensor until the importer is done with it."""

    device_type: str
    rebuild: Callable[..., torch.Tensor]
    arguments: tuple[object, ...]


def export_tensor(tensor: torch.Tensor, device_type: str) -> SharedTensor:
    """A handle by which another process can map the tensor's memory.

    Raises:
        ValueError: the tensor is not on a device of this type.
    """
    if tensor.device.type != device_type:
        raise ValueError(f"A tensor on {tensor.device} cannot be shared as one of a {device_type} device.")
    rebuild, arguments = reductions.reduce_tensor(tensor)  # type: ignore[no-untyped-call]  # torch has no types here
    return SharedTensor(device_type, rebuild, tuple(arguments))


def import_tensor(handle: object, device_type: str) -> torch.Tensor:
    """The tensor behind another process's handle.

    Raises:
        ValueError: the handle is not one of `export_tensor` for this device type.
    """
    if not isinstance(handle, SharedTensor) or handle.device_type != device_type:
        raise ValueError(f"{handle!r} is not a handle of a tensor on a {device_type} device.")
    return handle.rebuild(*handle.arguments)


@dataclass(frozen=True, slots=True)
class SharedEvent:
    """A picklable handle of an event. The exporting process must keep the event until the importer is done."""

    device_type: str
    handle: object  # the vendor's own: bytes


def export_event(event: object, device_type: str) -> SharedEvent:
    """A handle of an event that was made to be shared."""
    return SharedEvent(device_type, bytes(event.ipc_handle()))  # type: ignore[attr-defined]  # the vendor's method


def import_event(module: ModuleType, device_type: str, index: int, handle: object) -> Event:
    """The event behind another process's handle.

    Raises:
        ValueError: the handle is not one of `export_event` for this device type.
    """
    if not isinstance(handle, SharedEvent) or handle.device_type != device_type:
        raise ValueError(f"{handle!r} is not a handle of an event of a {device_type} device.")
    with module.device(index):
        found: Event = module.Event.from_ipc_handle(torch.device(device_type, index), handle.handle)
    return found
