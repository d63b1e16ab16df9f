"""The shapes of an operator's results, where it cannot run on the bytes that its arguments hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from devicekit.testing.poison import fill_with_poison

__all__ = ["imagined"]


def imagined(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """Host tensors of the shapes that `func` returns, their bytes poison. Raises what torch raises."""
    return _on_host(func(*map(_on_meta, args), **{name: _on_meta(value) for name, value in kwargs.items()}))


def _on_meta(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, tuple | list):
        return [_on_meta(item) for item in value]
    return torch.device("meta") if isinstance(value, torch.device) else value


def _on_host(value: object) -> object:
    if isinstance(value, torch.Tensor):
        made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cpu")
        fill_with_poison(made)
        return made
    if isinstance(value, tuple | list):
        return type(value)([_on_host(item) for item in value])
    return value
