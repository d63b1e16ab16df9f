"""Whether host memory is page-locked, by its own bytes: torch asks only where a tensor's storage begins."""

from __future__ import annotations

import ctypes

import torch


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether the first and the last byte of a host tensor are page-locked: drivers answer for addresses."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.numel():
        return tensor.is_pinned()
    first = tensor.data_ptr()
    steps = sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride(), strict=True))
    last = first + (steps + 1) * tensor.itemsize - 1
    return _byte(first).is_pinned() and _byte(last).is_pinned()


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """A page-locked copy, or the tensor itself where it is page-locked. Raises for one that is not on the host."""
    if is_pinned(tensor):
        return tensor
    # torch hands a part back as it is where only the beginning of its storage is page-locked.
    return (tensor.clone() if tensor.is_pinned() else tensor).pin_memory()


def _byte(address: int) -> torch.Tensor:
    """A tensor whose storage begins at the address."""
    return torch.frombuffer((ctypes.c_uint8 * 1).from_address(address), dtype=torch.uint8)
