"""Opens memory that another process of this machine shares, the two ways in which torch shares it on the host.

By descriptor: the other process hands over a file descriptor through a socket. It does so only to its own family
of processes (`multiprocessing`'s authkey). By name: the memory has a name, which every process of the same user
can open.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from multiprocessing import AuthenticationError, process
from multiprocessing.connection import Client
from multiprocessing.reduction import recv_handle

import torch

from devicekit.contract.text import shown
from devicekit.scheduling.errors import InvalidOperation

# What torch and multiprocessing themselves make up: nothing else is connected to, or opened.
_SENDER = re.compile(r"(/.*/pymp-[^/]+/|\0)listener-[^/]+")
_MANAGER = re.compile(rb"/.*/torch-shm-dir-[^/]+/manager\.sock")
_HANDLE = re.compile(rb"/torch_[0-9]+_[0-9]+_[0-9]+")
_SHARED_FILES = b"/dev/shm"


@dataclass(frozen=True, slots=True, eq=False)
class SharedStorage:
    """Memory of another process, given away once. One of ``sender`` and ``name``, or neither if it is empty."""

    size: int  # bytes
    sender: tuple[str, int] | None = None  # address of the socket, and which descriptor
    name: tuple[bytes, bytes] | None = None  # address of torch's manager, and the name


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A tensor in such memory. Offset and strides in elements."""

    storage: SharedStorage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Opener:
    """Opens tensors, and each of their storages once, which is as often as it was given away."""

    def __init__(self) -> None:
        self._opened: dict[SharedStorage, torch.UntypedStorage] = {}

    def open(self, shared: SharedTensor) -> torch.Tensor:
        """The tensor, as a view of the shared memory.

        Raises:
            InvalidOperation: its memory cannot be had, or it does not lie within it.
        """
        last = sum((size - 1) * step for size, step in zip(shared.shape, shared.stride, strict=True))
        elements = 0 if 0 in shared.shape else shared.offset + last + 1
        if elements * shared.dtype.itemsize > shared.storage.size:
            raise InvalidOperation("A shared tensor does not lie within its memory.")
        if not elements:
            return torch.empty(shared.shape, dtype=shared.dtype)
        storage = self._opened.get(shared.storage)
        if storage is None:
            storage = self._opened[shared.storage] = _opened(shared.storage)
        with torch.no_grad():
            empty = torch.empty(0, dtype=shared.dtype)
            return empty.set_(storage, shared.offset, shared.shape, shared.stride)


def _opened(shared: SharedStorage) -> torch.UntypedStorage:
    try:
        return _open(shared)
    except AuthenticationError as error:
        raise InvalidOperation(
            "The sender hands file descriptors to its own family of processes only: let it share by name "
            "(torch.multiprocessing.set_sharing_strategy('file_system'))."
        ) from error
    except (OSError, EOFError, RuntimeError) as error:
        raise InvalidOperation(f"Shared memory cannot be opened: {error}") from error


def _open(shared: SharedStorage) -> torch.UntypedStorage:
    if shared.sender is not None:
        return _from_descriptor(*shared.sender, shared.size)
    if shared.name is not None:
        return _from_name(*shared.name, shared.size)
    raise InvalidOperation("A shared tensor has no memory.")


def _from_descriptor(address: str, key: int, size: int) -> torch.UntypedStorage:
    if not _SENDER.fullmatch(address):
        raise InvalidOperation(f"Nobody shares memory at {shown(address)}.")
    with Client(address, authkey=process.current_process().authkey) as connection:
        connection.send((key, os.getpid()))
        descriptor = recv_handle(connection)
    try:
        _require(os.fstat(descriptor).st_size, size)
        share = torch.UntypedStorage._new_shared_fd_cpu  # type: ignore[attr-defined]  # not in torch's stubs
        storage: torch.UntypedStorage = share(descriptor, size)
        return storage
    finally:
        os.close(descriptor)


def _from_name(manager: bytes, handle: bytes, size: int) -> torch.UntypedStorage:
    if not _MANAGER.fullmatch(manager) or not _HANDLE.fullmatch(handle):
        raise InvalidOperation(f"Nobody shares memory at {shown(manager)} by the name {shown(handle)}.")
    _require(os.stat(_SHARED_FILES + handle).st_size, size)
    storage = torch.UntypedStorage._new_shared_filename_cpu(manager, handle, size)
    storage._shared_decref()  # the sender counted this process in when it gave the name away
    return storage


def _require(there: int, size: int) -> None:
    # A mapping longer than its file ends the process when it is read.
    if size > there:
        raise InvalidOperation(f"Shared memory has {there} bytes, not the {size} that were announced.")
