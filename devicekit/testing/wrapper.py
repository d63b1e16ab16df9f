"""The tensor that torch sees on the device, around the host tensor that holds its bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar, cast

import torch

from devicekit.testing import active
from devicekit.testing.errors import StaleTensor
from devicekit.testing.graphs import SimGraph
from devicekit.testing.poison import fill_with_poison
from devicekit.testing.sim_device import Lease, SimDevice

__all__ = ["DeviceTensor", "adopt", "empty_on", "wrap"]

_T = TypeVar("_T", bound="DeviceTensor")

# Tensors that share a storage share one lease: which one, by the storage's identity.
_leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()


class DeviceTensor(torch.Tensor):
    """Shape, dtype and device for torch; the bytes in ``_inner``; the memory they stand for in ``_lease``."""

    _inner: torch.Tensor
    _lease: Lease | None

    @staticmethod
    def __new__(cls: type[_T], inner: torch.Tensor, device: SimDevice) -> _T:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(active.DEVICE_TYPE, device.index),
            storage_size=inner.untyped_storage().nbytes(),
        )

    def __init__(self, inner: torch.Tensor, device: SimDevice) -> None:
        self._inner = inner
        self._lease = _lease_for(inner, device)

    @property
    def data(self) -> torch.Tensor:
        return cast(torch.Tensor, torch.Tensor.data.__get__(self))  # type: ignore[attr-defined]  # a C descriptor

    @data.setter
    def data(self, fresh: torch.Tensor) -> None:
        if not isinstance(fresh, DeviceTensor):
            raise RuntimeError(f"the data of a tensor on {self.device} can only be that of another there")
        torch.Tensor.data.__set__(self, fresh)  # type: ignore[attr-defined]  # a C descriptor
        self._inner, self._lease = fresh._inner, fresh._lease

    def _is_of(self, graph: SimGraph | None) -> bool:
        """True when the capture of `graph` made these bytes, or there are none."""
        return self._lease is None or self._lease.graph is graph

    def _alias(self) -> torch.Tensor:
        """Go on with another inner tensor over the same bytes, and return it: captured work still sees the old."""
        self._inner = torch.ops.aten.alias(self._inner)
        return self._inner

    def _device(self) -> SimDevice:
        machine, index, lease = active.simulator(), self.device.index, self._lease
        if index >= len(machine.devices) or (lease is not None and lease.device.machine is not machine):
            raise StaleTensor(f"this tensor on {self.device} is of another simulated machine")
        return machine.devices[index]


def wrap(cls: type[DeviceTensor], out: object, device: SimDevice) -> object:
    """Turn the host tensors in an operator's result into tensors on `device`."""
    if type(out) is torch.Tensor:
        return cls(out, device)
    if isinstance(out, tuple | list):
        return type(out)([wrap(cls, item, device) for item in out])
    return out


def empty_on(
    cls: type[DeviceTensor], device: SimDevice, nbytes: int, make: Callable[[], torch.Tensor]
) -> DeviceTensor:
    """A tensor on `device` whose bytes are not initialised; `make` makes its inner tensor of `nbytes`."""
    # First here, then on the host, which has room for far more than the device.
    lease = device.allocate(nbytes) if nbytes else None
    inner = make()
    if device.machine.config.fill_uninitialized:
        fill_with_poison(inner)
    if lease is not None:
        _leases[inner.untyped_storage()._cdata] = lease
    return cls(inner, device)


def adopt(cls: type[_T], inner: torch.Tensor, device: SimDevice) -> _T:
    """A tensor on `device` over bytes that another process allocated: it takes nothing from the allocator here."""
    lease = Lease(device, None, 0, inner.untyped_storage().nbytes())
    _leases[inner.untyped_storage()._cdata] = lease
    return cls(inner, device)


def _lease_for(inner: torch.Tensor, device: SimDevice) -> Lease | None:
    storage = inner.untyped_storage()
    key = storage._cdata
    nbytes = storage.nbytes()
    lease = _leases.get(key)
    if lease is None or lease.nbytes < nbytes:
        if not nbytes:
            return None
        # New bytes, or an operator made the host tensor's storage larger.
        lease = _leases[key] = device.allocate(nbytes)
    return lease
