"""What simulated memory reads as before it is written to: NaN in floats, -1 in integers, True in bools."""

from __future__ import annotations

import torch

__all__ = ["fill_with_poison"]


def fill_with_poison(tensor: torch.Tensor) -> None:
    """Overwrite all of the storage of a host tensor."""
    if tensor.nbytes:
        value = 1 if tensor.dtype == torch.bool else 0xFF
        torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(value)
