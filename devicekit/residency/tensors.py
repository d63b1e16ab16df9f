"""All tensors of a module, parameters and buffers, each once: how large, where, and how to replace them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(slots=True)
class _Slot:
    """One tensor, with every place in the module that holds it: tied weights are moved once."""

    tensor: torch.Tensor
    is_parameter: bool
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    attributes: dict[str, object] = field(default_factory=dict)  # that others have set on a parameter


class ModuleTensors:
    """Every parameter and buffer under some modules, but for those whose id is in ``without``."""

    def __init__(self, modules: Iterable[nn.Module], *, without: Collection[int] = ()) -> None:
        slots: dict[int, _Slot] = {}
        for module in modules:
            for owner in module.modules():
                for name, tensor, is_parameter in own_tensors(owner):
                    if id(tensor) not in without:
                        slot = slots.setdefault(id(tensor), _Slot(tensor, is_parameter))
                        slot.places.append((owner, name))
        self._slots = list(slots.values())
        for slot in self._slots:
            slot.attributes = _own_attributes(slot.tensor) if slot.is_parameter else {}

    @property
    def ids(self) -> set[int]:
        """The identities of the tensors as they are."""
        return {id(slot.tensor) for slot in self._slots}

    @property
    def current(self) -> list[torch.Tensor]:
        """The tensors as they are."""
        return [slot.tensor.detach() for slot in self._slots]

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(slot.tensor.nbytes for slot in self._slots)

    def bytes_on(self, device: torch.device) -> int:
        """Bytes of those on one device."""
        return sum(slot.tensor.nbytes for slot in self._slots if is_on(slot.tensor, device))

    def install(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put other tensors in their places, in the order of `current`."""
        with torch.no_grad():
            for slot, tensor in zip(self._slots, tensors, strict=True):
                _install(slot, tensor)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Name and tensor of each parameter (True) and buffer (False) that a module itself holds."""
    for held, is_parameter in ((module._parameters, True), (module._buffers, False)):
        for name, tensor in held.items():
            if tensor is not None:
                yield name, tensor, is_parameter


def is_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """Whether a tensor is on a device; one without an index is the only one of its kind."""
    here = tensor.device
    return here.type == device.type and device.index in (None, here.index)


def _own_attributes(parameter: torch.Tensor) -> dict[str, object]:
    """What others have set on a parameter, without what its tensor type keeps there itself."""
    found = vars(parameter)
    if not found:
        return {}
    usual = vars(nn.Parameter(parameter.detach(), requires_grad=False))
    return {name: value for name, value in found.items() if name not in usual}


def _install(slot: _Slot, tensor: torch.Tensor) -> None:
    if not slot.is_parameter:
        slot.tensor = tensor
        for owner, name in slot.places:
            owner._buffers[name] = tensor
        return
    old = slot.tensor
    # As torch's own Module.to decides it: whether a parameter can keep its identity on another device.
    if torch._has_compatible_shallow_copy_type(old, tensor):
        old.data = tensor
        return
    slot.tensor = fresh = nn.Parameter(tensor, requires_grad=old.requires_grad)
    vars(fresh).update(slot.attributes)
    for owner, name in slot.places:
        owner._parameters[name] = fresh
