"""Recurrent states: what layers without keys and values remember of a request, one slot per request.

Linear attention, Mamba and short convolutions fold all past tokens into tensors of fixed size. A slot holds one
request's tensors of all such layers. Slot 0 is padding and is never handed out; a slot is all zeros, which is
the state before the first token, when it is handed out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch

from devicekit.memory.errors import MemoryReleased
from devicekit.memory.pages import PageAllocator
from devicekit.ranges import MOST_IDS, whole

if TYPE_CHECKING:
    from devicekit.device import Device

_RELEASED = "the state pool's memory is released: resume it first"


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor that one layer keeps for each request."""

    layer: int  # the model's own number of the layer
    name: str  # distinguishes the tensors of a layer: "conv", "recurrent"
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"every dimension of a state must be at least 1: {self}")

    @property
    def nbytes(self) -> int:
        """Bytes for one request."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Everything that a model keeps for each request besides keys and values."""

    tensors: tuple[StateTensor, ...]

    def __post_init__(self) -> None:
        keys = [(one.layer, one.name) for one in self.tensors]
        if len(set(keys)) != len(keys):
            raise ValueError(f"two states of one layer have one name: {keys}")

    @property
    def bytes_per_slot(self) -> int:
        """Bytes that one request takes over all layers."""
        return sum(one.nbytes for one in self.tensors)


class StatePool:
    """State tensors of ``num_slots`` requests, slot 0 for padding, and ``snapshots`` of states, on one device.

    ``tensor(layer, name)`` is ``[num_slots + 1 + snapshots, *shape]``; whoever copies states to the slots at the
    end, which are never handed out, keeps account of them. `take` hands out a slot and clears it. A scheduler,
    which must not wait for the device, takes ids from ``slots`` itself, and what runs a request's first tokens
    clears its slot. With ``checked=True`` a slot given back twice raises (see `PageAllocator`).
    """

    def __init__(
        self,
        device: Device,
        layout: StateLayout,
        num_slots: int,
        *,
        snapshots: int = 0,
        checked: bool = False,
    ) -> None:
        """Allocates everything at once; raises ValueError for a pool without slots or tensors."""
        whole("num_slots", num_slots, least=1, most=MOST_IDS)
        whole("snapshots", snapshots)
        if not layout.tensors:
            raise ValueError(f"a state pool needs tensors: {layout}")
        self.device = device
        self.snapshots = snapshots
        self.layout = layout
        self.slots = PageAllocator(num_slots, checked=checked)
        self._tensors: Mapping[tuple[int, str], torch.Tensor] = self._allocate()

    @property
    def num_slots(self) -> int:
        """Slots that can be handed out."""
        return self.slots.num_pages

    @property
    def available(self) -> int:
        """Slots that can be taken now."""
        return self.slots.available

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, the padding slot and snapshots included."""
        return (self.num_slots + 1 + self.snapshots) * self.layout.bytes_per_slot

    def tensor(self, layer: int, name: str) -> torch.Tensor:
        """The states of all slots: the pool's own memory, not a copy."""
        return self._tensors[layer, name]

    def take(self) -> int:
        """Take a slot and make it all zeros; 0 when none is available."""
        slot = self.slots.take_one()
        if slot:
            for tensor in self._tensors.values():
                tensor[slot] = 0
        return slot

    def clear(self, slots: torch.Tensor) -> None:
        """Make slots (``[G]``, int64) all zeros, as before the first token."""
        for tensor in self._tensors.values():
            tensor.index_fill_(0, slots, 0)

    def give(self, slot: int) -> None:
        """Give a slot back."""
        self.slots.give_one(slot)

    def reset(self) -> None:
        """Make every slot free again, whoever holds it."""
        self.slots.reset()

    def release(self) -> int:
        """Free the memory of all tensors, contents and all, until `resume`; bytes. Slots stay as they are."""
        self.device.synchronize()  # a kernel may still be reading them
        self._tensors = _Released()
        return self.nbytes

    def resume(self) -> int:
        """Allocate the tensors again, all zeros; bytes."""
        self._tensors = self._allocate()
        return self.nbytes

    def read(self, layer: int, name: str, slots: torch.Tensor) -> torch.Tensor:
        """A copy of the states at ``slots`` (``[G]``, int64): ``[G, *shape]``."""
        return self._tensors[layer, name].index_select(0, slots)

    def write(self, layer: int, name: str, slots: torch.Tensor, states: torch.Tensor) -> None:
        """Store ``states`` (``[G, *shape]``) at ``slots`` (``[G]``, int64, each once)."""
        self._tensors[layer, name].index_copy_(0, slots, states)

    def copy(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy slots (``[G]``, int64) to others, each target once, on the device."""
        for tensor in self._tensors.values():
            tensor.index_copy_(0, targets, tensor.index_select(0, sources))

    def _allocate(self) -> dict[tuple[int, str], torch.Tensor]:
        device = self.device.torch_device
        return {
            (one.layer, one.name): torch.zeros(
                (self.num_slots + 1 + self.snapshots, *one.shape), dtype=one.dtype, device=device
            )
            for one in self.layout.tensors
        }


class _Released(Mapping[tuple[int, str], torch.Tensor]):
    """Stands where the tensors were, so that using them costs no test while they are there."""

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> NoReturn:
        raise MemoryReleased(_RELEASED)

    def __getitem__(self, key: tuple[int, str]) -> NoReturn:
        raise MemoryReleased(_RELEASED)
