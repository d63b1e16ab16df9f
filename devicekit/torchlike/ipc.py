"""Tensors shared between processes by torch's own reductions, which vendors extend for their devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.multiprocessing import reductions


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
