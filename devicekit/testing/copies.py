"""``copy_`` and ``.to()`` between host and devices, in terms of the transfers that the device can make."""

from __future__ import annotations

from typing import cast

import torch

from devicekit.testing import active
from devicekit.testing.graphs import Written
from devicekit.testing.poison import fill_with_poison
from devicekit.testing.transfer import device_to_device, device_to_host, host_to_device
from devicekit.testing.wrapper import DeviceTensor

__all__ = ["copy_", "to_copy", "write"]


def copy_(destination: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy between any two of host and devices; returns `destination`."""
    _tell_graph(destination, source)
    if not isinstance(source, DeviceTensor):
        if not isinstance(destination, DeviceTensor):
            return destination.copy_(source)
        host_to_device(destination._device(), destination._inner, source, non_blocking=non_blocking)
        return destination
    origin = source._device()
    if not isinstance(destination, DeviceTensor):
        device_to_host(origin, destination, source._inner, source._lease, non_blocking=non_blocking)
    elif (target := destination._device()) is not origin:
        device_to_device(target, origin, destination._inner, source._inner)
    else:
        write(destination, source._inner)
    return destination


def _tell_graph(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if isinstance(tensor, DeviceTensor) and (graph := tensor._device().capturing) is not None:
            graph.refer(tensor._lease)


def write(destination: DeviceTensor, values: torch.Tensor) -> None:
    """Let one kernel write `values`, bytes of that device or known to the kernel, into `destination`."""
    device, inner = destination._device(), destination._inner
    graph = device.capturing
    if graph is None:
        device.run_kernel("aten::copy_", lambda: inner.copy_(values))
        return
    writes = [] if destination._is_of(graph) else [inner]
    graph.note(lambda: inner.copy_(values), writes=writes, result=Written(inner))


def to_copy(
    source: DeviceTensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    machine = active.simulator()
    form = torch.preserve_format if memory_format is None else memory_format
    target = source.device if device is None else torch.device(device)
    if target.type == "meta":
        return torch.empty_like(source._inner, dtype=dtype, device=target, memory_format=form)
    if target.type not in (active.DEVICE_TYPE, "cpu"):
        raise NotImplementedError(
            f"a tensor on {source.device} cannot be copied to {target}: go through the host"
        )
    if target.type == "cpu":
        if dtype is not None and dtype != source.dtype:
            source = cast(DeviceTensor, to_copy(source, dtype=dtype, memory_format=form))
        pinned = non_blocking or bool(pin_memory)
        host = torch.empty_like(source._inner, memory_format=form)
        if pinned:
            host = machine.pinned.empty_tensor(host)
            fill_with_poison(host)
        device_to_host(source._device(), host, source._inner, source._lease, non_blocking=non_blocking)
        return host
    made = torch.empty_like(
        source._inner,
        dtype=dtype or source.dtype,
        device=source.device if device is None else device,
        memory_format=form,
    )
    return copy_(made, source)
