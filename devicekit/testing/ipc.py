"""Tensors shared between processes: the exporter's bytes move into shared memory, and importers map the same ones.

An imported tensor takes nothing from the importer's allocator, as with real drivers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from devicekit.testing import active
from devicekit.testing.tensor import SimTensor
from devicekit.testing.wrapper import adopt

__all__ = ["IpcHandle", "export_tensor", "import_tensor"]


@dataclass(frozen=True, slots=True)
class IpcHandle:
    """Names the bytes of a tensor to another process on this host. Good while the exporter holds the tensor."""

    manager: bytes
    name: bytes
    nbytes: int
    index: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def export_tensor(tensor: torch.Tensor) -> IpcHandle:
    """A handle to the memory of `tensor`. Raises TypeError for a tensor that is not on this device type."""
    if not isinstance(tensor, SimTensor):
        raise TypeError(f"only tensors on {active.DEVICE_TYPE} can be exported, not one on {tensor.device}")
    inner = tensor._inner
    # Another process cannot wait for what is queued here.
    tensor._device().synchronize()
    manager, name, nbytes = inner.untyped_storage()._share_filename_cpu_()
    return IpcHandle(
        manager=manager,
        name=name,
        nbytes=nbytes,
        index=tensor.device.index,
        dtype=inner.dtype,
        shape=tuple(inner.shape),
        stride=inner.stride(),
        offset=int(inner.storage_offset()),
    )


def import_tensor(handle: object) -> SimTensor:
    """The tensor behind `handle`. Raises TypeError for anything that :func:`export_tensor` did not make."""
    if not isinstance(handle, IpcHandle):
        raise TypeError(f"not a handle to a tensor on {active.DEVICE_TYPE}: {handle!r}")
    storage = torch.UntypedStorage._new_shared_filename_cpu(handle.manager, handle.name, handle.nbytes)
    inner = torch.empty(0, dtype=handle.dtype).set_(storage, handle.offset, handle.shape, handle.stride)
    return adopt(SimTensor, inner, active.simulator().device(handle.index))
