"""Recurrent layers on packed batches: each sequence's state comes from the state pool and goes back to it.

A recurrent layer takes one sequence, or several of one length, and transformers' cache. Here the packed tokens
are cut into groups of sequences with equally many tokens (all that decode are one group), and a group's states
stand in for the cache. New states reach the pool only when the whole pass has succeeded, so that a pass that
failed can be run again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Protocol, cast

import numpy as np
import torch

from devicekit.memory.state import StatePool
from devicekit.runners.plan import to_device
from devicekit.scheduling.batch import ForwardBatch, Int32

# By model type: the kind of its recurrent layers in the config, and the module class that mixes tokens in them.
# What is here is held to the model's own generate by tests.
RECURRENT: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "lfm2": ("conv", "Lfm2ShortConv"),
        "qwen3_next": ("linear_attention", "Qwen3NextGatedDeltaNet"),
    }
)
TESTED_TRANSFORMERS = "5.17, 5.23 and 5.24"
"""Releases whose recurrent layers are held to the model's own generate. Each keeps its states in another way."""

_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")  # newest release of transformers first

_context: ContextVar[StateContext] = ContextVar("devicekit_states")


class LayerStates:
    """The states of one layer for some sequences, in the form in which a layer asks transformers' cache for them.

    ``states`` is by name, ``[sequences, *shape]``; empty before the first token, and current after a call.
    """

    def __init__(self, states: dict[str, torch.Tensor]) -> None:
        self.states = states

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.states.get(f"conv.{state_idx}")

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, *, conv_kernel_size: int
    ) -> torch.Tensor:
        """Append inputs of a convolution; the answer begins with the inputs before them."""
        name = f"conv.{state_idx}"
        before = self.states.get(name)
        if before is None:
            before = conv_states.new_zeros(*conv_states.shape[:-1], conv_kernel_size)
        full = torch.cat([before, conv_states], dim=-1)
        self.states[name] = full[..., -conv_kernel_size:]
        return full

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.states.get(f"recurrent.{state_idx}")

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0
    ) -> torch.Tensor:
        self.states[f"recurrent.{state_idx}"] = recurrent_states
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return bool(self.states)

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    # Before transformers 5.23, layers read the cache's own lists instead.

    record_past = False

    @property
    def layers(self) -> _OneForAll:
        return _OneForAll(self)

    @property
    def conv_states(self) -> dict[int, torch.Tensor]:
        return self._of_kind("conv")

    @property
    def recurrent_states(self) -> dict[int, torch.Tensor]:
        return self._of_kind("recurrent")

    def _of_kind(self, kind: str) -> dict[int, torch.Tensor]:
        found = (name.split(".") for name in self.states)
        return {int(index): self.states[f"{kind}.{index}"] for one, index in found if one == kind}


class _OneForAll:
    """A list of layers in which every one is the same."""

    def __init__(self, states: LayerStates) -> None:
        self._states = states

    def __getitem__(self, layer_idx: int) -> LayerStates:
        return self._states


Mixer = Callable[[torch.Tensor, LayerStates], torch.Tensor]
"""A recurrent layer: ``[sequences, tokens, width]`` and their states in, the same shape out."""


class StateContext(Protocol):
    """What a forward pass carries to its recurrent layers."""

    def mix(self, layer: int, mixer: Mixer, hidden: torch.Tensor) -> torch.Tensor:
        """Run the packed tokens ``hidden`` ([1, T, width]) of a layer through ``mixer``; the same shape."""
        ...


class PackedStates:
    """The context of one step: reads each layer's states from the pool, and keeps the new ones until `commit`."""

    def __init__(self, pool: StatePool, batch: ForwardBatch, device: torch.device) -> None:
        if batch.state_slots is None:
            raise ValueError("the model has recurrent layers, and the batch names no state slots")
        self._pool = pool
        self._groups = _groups(batch.query_start_loc, batch.state_slots, device)
        starting = np.flatnonzero(batch.seq_lens == np.diff(batch.query_start_loc))
        if starting.size:  # whoever had these slots before left something in them
            pool.clear(to_device((batch.state_slots[starting],), device)[0])
        if batch.restored_states is not None:
            pool.copy(*to_device((batch.restored_states[:, 0], batch.restored_states[:, 1]), device))
        kept = batch.kept_states
        self._kept = None if kept is None else to_device((kept[:, 0], kept[:, 1]), device)
        self._names: dict[int, list[str]] = {}
        for one in pool.layout.tensors:
            self._names.setdefault(one.layer, []).append(one.name)
        self._changed: list[tuple[int, str, torch.Tensor, torch.Tensor]] = []

    def mix(self, layer: int, mixer: Mixer, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden[0]
        output = torch.empty_like(flat)
        for tokens, slots in self._groups:
            states = LayerStates({name: self._pool.read(layer, name, slots) for name in self._names[layer]})
            mixed = mixer(flat[tokens], states)
            output.index_copy_(0, tokens.reshape(-1), mixed.flatten(0, 1))
            self._changed += [(layer, name, slots, value) for name, value in states.states.items()]
        return output.unsqueeze(0)

    def commit(self) -> None:
        """Make this step's states those that the next one reads, and copy those that are to be kept."""
        for layer, name, slots, value in self._changed:
            self._pool.write(layer, name, slots, value)
        self._changed = []
        if self._kept is not None:
            self._pool.copy(*self._kept)


@contextmanager
def mixing(context: StateContext) -> Iterator[None]:
    """Recurrent layers in this block, on this thread, take their states from ``context``."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def install(model: torch.nn.Module, model_type: str) -> None:
    """Have the recurrent layers of a model ask the context for their states; doing it again changes nothing."""
    if model_type not in RECURRENT:
        return
    _, kind = RECURRENT[model_type]
    for module in model.modules():
        if type(module).__name__ == kind and not isinstance(module.forward, _Packed):
            module.forward = _Packed(module)


class _Packed:
    """Stands in for a recurrent module's ``forward``."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._forward: Callable[..., torch.Tensor] = module.forward
        self._layer = cast("int", module.layer_idx)
        parameters = inspect.signature(module.forward).parameters
        known = [name for name in _CACHE_ARGUMENTS if name in parameters]
        if not known:
            raise TypeError(
                f"{type(module).__name__} takes no cache under any of the names {_CACHE_ARGUMENTS}"
            )
        self._cache = known[0]

    def __call__(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return _context.get().mix(self._layer, self._mix, hidden_states)

    def _mix(self, hidden: torch.Tensor, states: LayerStates) -> torch.Tensor:
        return self._forward(hidden, **{self._cache: states})


def _groups(starts: Int32, slots: Int32, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Indices of the packed tokens, [G, Q], and state slots, [G], of sequences with equally many tokens."""
    counts = np.diff(starts)
    found = []
    for count in np.unique(counts[counts > 0]).tolist():
        chosen = np.flatnonzero(counts == count)
        tokens, at = to_device((starts[chosen][:, None] + np.arange(count), slots[chosen]), device)
        found.append((tokens, at))
    return found
