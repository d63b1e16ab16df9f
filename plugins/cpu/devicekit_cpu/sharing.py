"""Tensors shared with other processes of this host, in POSIX shared memory.

The name of a segment goes away with the exporter's last tensor in it, at the exporter's end, and also when it is
killed: Python's resource tracker outlives it. Processes of multiprocessing share one tracker: the name of one that
was killed goes when all of them have ended. Whoever has mapped a segment keeps it until their tensors are gone.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.util import Finalize

import torch


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A picklable handle. Good until the exporter drops the tensor; imported tensors outlive that."""

    name: str
    nbytes: int  # of the segment
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements


# By address: segments that tensors of this process live in.
_own: dict[int, SharedMemory] = {}


def export_tensor(tensor: torch.Tensor) -> SharedTensor:
    """Move a tensor into shared memory, unless it is there, and name it.

    The tensor object lives in shared memory from then on, so that what is written to it is seen by others. Views
    of it that were made before keep the old memory.

    Raises:
        TypeError: it is not a plain tensor in host memory.
    """
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise TypeError(
            f"only strided tensors in host memory can be shared, not {tensor.layout} on {tensor.device}"
        )
    segment = _own.get(tensor.untyped_storage().data_ptr())
    if segment is None:
        segment = _move(tensor)
    return SharedTensor(
        segment.name,
        segment.size,
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        int(tensor.storage_offset()),
    )


def import_tensor(handle: object) -> torch.Tensor:
    """Map another process's tensor.

    Raises:
        TypeError: the handle is not one of `export_tensor`.
        FileNotFoundError: the exporter has dropped the tensor, or is gone.
    """
    if not isinstance(handle, SharedTensor):
        raise TypeError(f"not the handle of a tensor in shared memory: {handle!r}")
    # multiprocessing's own class would have this process's resource tracker remove the exporter's segment.
    import _posixshmem  # type: ignore[import-not-found]  # part of CPython on POSIX, and without stubs

    descriptor = _posixshmem.shm_open(f"/{handle.name}", os.O_RDWR, mode=0o600)
    try:
        mapped = mmap.mmap(descriptor, handle.nbytes)
    finally:
        os.close(descriptor)
    return _view(mapped, handle.dtype, handle.shape, handle.stride, handle.offset)


def _move(tensor: torch.Tensor) -> SharedMemory:
    content = tensor.detach().contiguous()
    segment = SharedMemory(create=True, size=max(content.nbytes, 1))
    # torch keeps the object that it takes the memory from, so this view lives exactly as long as the storage.
    view = memoryview(segment.buf or b"")
    shared = _view(view, content.dtype, tuple(content.shape), content.stride(), 0)
    shared.copy_(content)
    address = shared.untyped_storage().data_ptr()
    _own[address] = segment
    # Last registered is called first: forget, remove the name, unmap. At exit tensors may still be in use.
    weakref.finalize(view, segment.close).atexit = False
    # Unlike weakref's, this one does nothing in a forked child, and something at the end of multiprocessing's.
    Finalize(view, segment.unlink, exitpriority=0)
    weakref.finalize(view, _own.pop, address, None)
    tensor.data = shared
    return segment


def _view(
    memory: memoryview | mmap.mmap,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
) -> torch.Tensor:
    content = torch.frombuffer(memory, dtype=torch.uint8)
    storage = content.untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)
