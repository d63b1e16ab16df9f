"""Where a component lives between uses: the modes to choose from, and what each does before and after a use.

======================  ===================================  ================================================
mode                    before a use                         after a use
======================  ===================================  ================================================
``Resident``            nothing, once it is there            nothing
``ComponentOffload``    copied to the device                 copied to the host: for weights that change
``SnapshotOffload``     copied to the device                 dropped: the host kept a copy, for frozen weights
``LayerwiseOffload``    what is not in a layer is copied     dropped: the host kept a copy, for frozen weights;
                                                             each layer is copied when its turn comes
======================  ===================================  ================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from devicekit.residency.tensors import ModuleTensors
from devicekit.residency.transfer import Transfer, Upload


class Strategy(ABC):
    """One component under one mode. If a method raises, the component is where it was before."""

    #: Whether it is worth fetching beforehand while another component is in use.
    prefetches_beside = True
    #: Whether using it leaves memory behind even where the whole was never on the device.
    layerwise = False

    def __init__(self, module: nn.Module, transfer: Transfer) -> None:
        self.module = module
        self.transfer = transfer
        #: Whether a prefetch is under way that no use has taken yet.
        self.prefetched = False

    @property
    def bytes(self) -> int:
        """Bytes that a use brings to the device at once."""
        return ModuleTensors([self.module]).bytes

    @property
    def bytes_on_device(self) -> int:
        """Bytes of all parameters and buffers that are on the device now."""
        return ModuleTensors([self.module]).bytes_on(self.transfer.device.torch_device)

    def prefetch(self, dtype: torch.dtype | None) -> None:  # noqa: B027  # a mode may have nothing to do
        """Begin to bring the component to the device, so that `ready` need not wait."""

    @abstractmethod
    def ready(self, dtype: torch.dtype | None) -> None:
        """Bring the component to the device, for work that is submitted from now on."""

    @abstractmethod
    def park(self) -> None:
        """End a use, and drop a prefetch that none has taken."""

    def detach(self) -> None:
        """Undo what was done to the module, which is parked then."""
        self.park()


@dataclass(frozen=True, slots=True)
class Resident:
    """The component stays on the device from its first use on."""

    def attach(self, module: nn.Module, transfer: Transfer) -> Strategy:
        """The strategy for one module."""
        return _Resident(module, transfer)


@dataclass(frozen=True, slots=True)
class ComponentOffload:
    """The component is moved to the device for each use, and back."""

    def attach(self, module: nn.Module, transfer: Transfer) -> Strategy:
        """The strategy for one module."""
        return _ComponentOffload(module, transfer)


@dataclass(frozen=True, slots=True)
class SnapshotOffload:
    """The component is copied to the device for each use and dropped there; changes to its weights are lost."""

    def attach(self, module: nn.Module, transfer: Transfer) -> Strategy:
        """The strategy for one module."""
        return _SnapshotOffload(module, transfer)


class _Whole(Strategy):
    """Brings all tensors at once."""

    def __init__(self, module: nn.Module, transfer: Transfer) -> None:
        super().__init__(module, transfer)
        self._upload: tuple[ModuleTensors, Upload] | None = None
        self._dtype: torch.dtype | None = None  # of the last use, or of the upload

    def prefetch(self, dtype: torch.dtype | None) -> None:
        if self._upload is None:
            tensors = ModuleTensors([self.module])
            self._upload = tensors, self.transfer.upload(self._source(tensors), dtype)
            self._dtype, self.prefetched = dtype, True

    def ready(self, dtype: torch.dtype | None) -> None:
        if dtype != self._dtype:
            self._forget_upload()
        elif self._upload is None and self.bytes_on_device == self.bytes:
            return
        self.prefetch(dtype)
        assert self._upload is not None
        tensors, upload = self._upload
        tensors.install(upload.wait())
        self._upload, self.prefetched = None, False

    def park(self) -> None:
        self._forget_upload()

    def _source(self, tensors: ModuleTensors) -> Sequence[torch.Tensor]:
        return tensors.current

    def _forget_upload(self) -> None:
        upload, self._upload = self._upload, None
        self.prefetched = False
        if upload is not None:
            upload[1].wait()  # its memory may be used anew when the copies are over


class _Resident(_Whole):
    """Parking leaves the component where it is."""


class _ComponentOffload(_Whole):
    prefetches_beside = False  # two whole components would be on the device at once

    def __init__(self, module: nn.Module, transfer: Transfer) -> None:
        super().__init__(module, transfer)
        self.park()

    def park(self) -> None:
        super().park()
        tensors = ModuleTensors([self.module])
        tensors.install(self.transfer.pinned(tensors.current))


class _SnapshotOffload(_Whole):
    def __init__(self, module: nn.Module, transfer: Transfer) -> None:
        super().__init__(module, transfer)
        tensors = ModuleTensors([module])
        self._image = transfer.pinned(tensors.current)
        tensors.install(self._image)

    def park(self) -> None:
        ModuleTensors([self.module]).install(self._image)  # first: it succeeds even when the device is lost
        super().park()

    def _source(self, tensors: ModuleTensors) -> Sequence[torch.Tensor]:
        return self._image
