"""The memory of the weights, which can be given back for a while, with or without a copy on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from devicekit.scheduling.messages import Selector
from devicekit.weights.store import WeightStore


@dataclass(slots=True)
class _Parked:
    """A parameter without memory, and what it was."""

    parameter: torch.nn.Parameter
    size: tuple[int, ...]
    stride: tuple[int, ...]
    backup: torch.Tensor | None


class WeightsRegion:
    """Every parameter of every model. Buffers stay: they are small, and nobody sends them again.

    A released parameter is empty, so that touching it is an error of shapes and not of memory. It stays the same
    object, and its memory comes back at another address: graphs that were captured with it must be captured again.
    """

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._backups: dict[tuple[Selector, str], torch.Tensor] = {}
        self._parked: dict[tuple[Selector, str], _Parked] = {}

    @property
    def unsaved(self) -> frozenset[tuple[Selector, str]]:
        """Released parameters whose values are not kept."""
        return frozenset(key for key, one in self._parked.items() if one.backup is None)

    @property
    def names(self) -> frozenset[tuple[Selector, str]]:
        """Every parameter, released or not."""
        return frozenset(self._parameters())

    def back_up(self) -> int:
        """Copy every parameter to host memory, page-locked where possible; returns the bytes.

        The next `release` keeps the copies, and `resume` puts them back.
        """
        device = self._store.device
        pin = device.supports("pin_memory")
        backups: dict[tuple[Selector, str], torch.Tensor] = {}
        for key, parameter in self._parameters().items():
            copy = parameter.detach().to("cpu", copy=True)
            backups[key] = device.pin_memory(copy) if pin else copy
        self._backups = backups
        return sum(copy.nbytes for copy in backups.values())

    def drop_backup(self) -> None:
        """Drop copies that no `release` has taken."""
        self._backups = {}

    def release(self) -> int:
        """Free the parameters' memory; returns its bytes."""
        self._store.device.synchronize()  # a kernel may still be reading them
        size = 0
        for key, parameter in self._parameters().items():
            size += parameter.nbytes
            self._parked[key] = _Parked(
                parameter, tuple(parameter.shape), parameter.stride(), self._backups.pop(key, None)
            )
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        return size

    def resume(self) -> int:
        """Give every parameter memory again, and its values where there is a copy of them; returns the bytes."""
        fresh = {
            key: torch.empty_strided(
                one.size, one.stride, dtype=one.parameter.dtype, device=one.parameter.device
            )
            for key, one in self._parked.items()
        }
        lost = [key for key, one in self._parked.items() if one.backup is None]
        for key, one in self._parked.items():
            if one.backup is not None:
                fresh[key].copy_(one.backup)
            one.parameter.data = fresh[key]
        self._parked.clear()
        self._store.distrust(lost)
        return sum(tensor.nbytes for tensor in fresh.values())

    def _parameters(self) -> dict[tuple[Selector, str], torch.nn.Parameter]:
        found = self._store.tensors(Selector.ALL)
        return {key: tensor for key, tensor in found.items() if isinstance(tensor, torch.nn.Parameter)}
