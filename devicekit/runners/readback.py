"""Results of a pass on the host: all of them in one copy, so that the host waits for the device once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch


def read_back(tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
    """Tensors of one device as arrays. Elements have four bytes, so that all of them fit into one tensor."""
    if tensors[0].is_cpu:
        return [tensor.numpy() for tensor in tensors]
    flat = torch.cat([tensor.reshape(-1).view(torch.int32) for tensor in tensors]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [
        part.view(tensor.dtype).view(tensor.shape).numpy()
        for part, tensor in zip(parts, tensors, strict=True)
    ]
