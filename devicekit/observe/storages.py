"""Finds the memory behind tensors: the storages they share, and the bytes an operator is about to ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_first_sight(operator: torch._ops.OpOverload) -> bool:
    """Whether the operator is torch's way to pass on a tensor that it has just made of Python data."""
    return operator._schema.name == "aten::lift_fresh"


def storages(value: object, device: torch.device) -> Iterator[torch.UntypedStorage]:
    """Every storage on ``device`` of the tensors in ``value``, looking into sequences and mappings.

    A tensor that wraps others (a subclass that torch can flatten) counts with the storages that it wraps, on the
    device that it claims. Sparse, fake and meta tensors have no memory to speak of and give nothing.
    """
    if isinstance(value, torch.Tensor):
        if value.device == device:
            yield from _own(value)
        elif _wraps(value):
            for inner in _inner(value):
                yield from storages(inner, device)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from storages(item, device)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from storages(item, device)


def _own(tensor: torch.Tensor) -> Iterator[torch.UntypedStorage]:
    if _wraps(tensor):
        for inner in _inner(tensor):
            yield from _own(inner)
        return
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # torch's two ways to say that a layout has no storage
        return
    if storage.device.type != "meta" and storage.nbytes():
        yield storage


def _wraps(tensor: torch.Tensor) -> bool:
    return is_traceable_wrapper_subclass(tensor)


def _inner(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]  # is_traceable_wrapper_subclass says it is there
    for name in names:
        yield getattr(tensor, name)


_BY_SIZE = {"empty", "zeros", "ones", "full", "rand", "randn", "empty_strided"}
_BY_SIZE_LIKE = {"new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"}
_LIKE = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "clone", "_to_copy"}


def bytes_to_come(
    operator: torch._ops.OpOverload,
    arguments: Sequence[object],
    options: Mapping[str, object],
    is_here: Callable[[torch.device], bool],
) -> int | None:
    """Bytes that ``operator`` is about to allocate on a device, where its arguments tell; otherwise ``None``.

    They tell for torch's factories, for clones and for copies from another device or type.

    Args:
        is_here: whether a ``torch.device``, which may lack an index, is the one that is asked about.
    """
    name = operator._schema.name.removeprefix("aten::")
    if name not in _BY_SIZE and name not in _BY_SIZE_LIKE and name not in _LIKE:
        return None
    like = arguments[0] if arguments and isinstance(arguments[0], torch.Tensor) else None
    where = options.get("device") or (like.device if like is not None else torch.get_default_device())
    if not is_here(torch.device(cast("torch.device", where))):
        return None
    kind = options.get("dtype") or (like.dtype if like is not None else torch.get_default_dtype())
    sizes = arguments[1] if name in _BY_SIZE_LIKE else like.shape if like is not None else arguments[0]
    return math.prod(cast("Sequence[int]", sizes)) * cast("torch.dtype", kind).itemsize
