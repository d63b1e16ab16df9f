"""Recurrent layers on packed batches: each sequence's state is read from the state pool and written back to it.

A recurrent layer takes one sequence, or several of one length, and transformers' cache. Here the packed tokens are
cut into groups of sequences with equally many tokens (all that decode are one group), and a group's states take
the place of the cache. New states reach the pool only when the whole pass has succeeded, so that a pass that
failed can be run again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from devicekit.memory.state import StatePool
from devicekit.runners.plan import to_device
from devicekit.scheduling.batch import ForwardBatch, Int32


@dataclass(frozen=True, slots=True)
class Recurrent:
    """The recurrent layers of a model type."""

    kinds: frozenset[str]  # what they are called among the config's kinds of layers
    module: str  # the class that mixes tokens in them
    # Whether it goes on from a state with several tokens at once; if not, those come one by one.
    continues: bool = True
    since: str = "5.23"  # the release of transformers that keeps its states as this one reads them


def _linear(module: str, *, continues: bool = True, also: str = "", since: str = "5.23") -> Recurrent:
    return Recurrent(frozenset({"linear_attention", *also.split()}), module, continues, since)


# What is here is held to the model's own generate by tests (docs/results/architectures.md).
RECURRENT: Mapping[str, Recurrent] = MappingProxyType(
    {
        "bailing_hybrid": _linear("BailingHybridDeltaAttention"),
        "bamba": _linear("BambaMixer"),
        "falcon_h1": _linear("FalconH1Mixer", also="hybrid"),
        "falcon_mamba": _linear("FalconMambaMixer", continues=False),
        "granitemoehybrid": _linear("GraniteMoeHybridMambaLayer"),
        "jamba": _linear("JambaMambaMixer", continues=False),
        "kimi_linear": _linear("KimiLinearDeltaAttention"),
        "lfm2": Recurrent(frozenset({"conv"}), "Lfm2ShortConv", since="5.17"),
        "lfm2_moe": Recurrent(frozenset({"conv"}), "Lfm2MoeShortConv"),
        "lfm3": Recurrent(frozenset({"conv"}), "Lfm3ShortConv"),
        "mamba": _linear("MambaMixer", continues=False),
        "mamba2": _linear("Mamba2Mixer"),
        "nemotron_h": _linear("NemotronHMamba2Mixer"),
        "olmo_hybrid": _linear("OlmoHybridGatedDeltaNet"),
        "qwen3_5_text": _linear("Qwen3_5GatedDeltaNet"),
        "qwen3_5_moe_text": _linear("Qwen3_5MoeGatedDeltaNet"),
        "qwen3_next": _linear("Qwen3NextGatedDeltaNet", since="5.17"),
        "zamba": _linear("ZambaMambaMixer", continues=False, also="hybrid"),
        "zamba2": _linear("Zamba2MambaMixer", also="hybrid"),
    }
)
MEMORYLESS = frozenset({"mlp", "moe"})
"""Kinds of layers that look at nothing but the token itself."""

TESTED_TRANSFORMERS = "5.17, 5.23 and 5.24"
"""Releases whose recurrent layers are held to the model's own generate. Each keeps its states in another way."""


def older_than(release: str) -> bool:
    """Whether the transformers that is installed is older than a release, given as ``major.minor``."""
    own = [int(part) for part in version("transformers").split(".")[:2]]
    return own < [int(part) for part in release.split(".")]


_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")  # newest release of transformers first

_context: ContextVar[StateContext] = ContextVar("devicekit_states")


def cache_argument(module: torch.nn.Module) -> str:
    """The name under which a module of transformers takes a cache, and under which a model answers with one.

    Raises:
        TypeError: it takes none under a name that is known.
    """
    parameters = inspect.signature(module.forward).parameters
    for name in _CACHE_ARGUMENTS:
        if name in parameters:
            return name
    raise TypeError(f"{type(module).__name__} takes no cache under any of the names {_CACHE_ARGUMENTS}")


class LayerStates:
    """The states of one layer for some sequences, as a layer asks transformers' cache for them.

    ``states`` is by name, ``[sequences, *shape]``; empty before the first token, and current after a call.
    """

    def __init__(self, states: MutableMapping[str, torch.Tensor]) -> None:
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
    """What recurrent layers use during a forward pass."""

    def mix(self, layer: int, mixer: Mixer, hidden: torch.Tensor, *, continues: bool) -> torch.Tensor:
        """Run the packed tokens ``hidden`` ([1, T, width]) of a layer through ``mixer``; the same shape.

        ``continues``: see `Recurrent`.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences with equally many tokens."""

    tokens: torch.Tensor  # [G, Q] indices of the packed tokens
    slots: torch.Tensor  # [G] of their states
    starts: bool  # whether these are their first tokens


class _Read(MutableMapping[str, torch.Tensor]):
    """The states of a layer at some slots, copied from the pool to ``used`` as they are asked for."""

    def __init__(
        self,
        pool: StatePool,
        layer: int,
        names: Sequence[str],
        slots: torch.Tensor,
        used: dict[str, torch.Tensor],
    ) -> None:
        self._pool, self._layer, self._names, self._slots = pool, layer, names, slots
        self.used = used

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.used:
            if name not in self._names:
                raise KeyError(name)
            self.used[name] = self._pool.read(self._layer, name, self._slots)
        return self.used[name]

    def __setitem__(self, name: str, value: torch.Tensor) -> None:
        self.used[name] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError("a state is never forgotten in a pass")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class PackedStates:
    """The context of one step: reads each layer's states from the pool, and keeps the new ones until `commit`."""

    def __init__(self, pool: StatePool, batch: ForwardBatch, device: torch.device) -> None:
        if batch.state_slots is None:
            raise ValueError("the model has recurrent layers, and the batch names no state slots")
        self._pool = pool
        starts = batch.seq_lens == np.diff(batch.query_start_loc)
        self._groups = _groups(batch.query_start_loc, batch.state_slots, starts, device)
        starting = np.flatnonzero(starts)
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

    def mix(self, layer: int, mixer: Mixer, hidden: torch.Tensor, *, continues: bool) -> torch.Tensor:
        flat = hidden[0]
        output: torch.Tensor | None = None
        for group in self._groups:
            # Who begins has no state rather than zeros, and is computed as the model computes it alone.
            used: dict[str, torch.Tensor] = {}
            known: MutableMapping[str, torch.Tensor] = used
            if not group.starts:
                known = _Read(self._pool, layer, self._names[layer], group.slots, used)
            states = LayerStates(known)
            if continues or group.starts or group.tokens.shape[1] == 1:
                mixed = mixer(flat[group.tokens], states)
            else:
                mixed = torch.cat(
                    [mixer(flat[one], states) for one in torch.split(group.tokens, 1, dim=1)], dim=1
                )
            if output is None:
                output = mixed.new_empty(flat.shape[0], mixed.shape[-1])
            output.index_copy_(0, group.tokens.reshape(-1), mixed.flatten(0, 1))
            self._changed += [(layer, name, group.slots, value) for name, value in used.items()]
        return torch.empty_like(hidden) if output is None else output.unsqueeze(0)

    def commit(self) -> None:
        """Make this step's states the ones that the next step reads, and copy those that are to be kept."""
        for layer, name, slots, value in self._changed:
            self._pool.write(layer, name, slots, value)
        self._changed = []
        if self._kept is not None:
            self._pool.copy(*self._kept)


@contextmanager
def mixing(context: StateContext) -> Iterator[None]:
    """A block in which recurrent layers on this thread take their states from ``context``."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def install(model: torch.nn.Module, model_type: str) -> None:
    """Let the recurrent layers of a model ask the context for states. Doing it again changes nothing."""
    kind = RECURRENT.get(model_type)
    if kind is None:
        return
    for module in model.modules():
        if type(module).__name__ == kind.module and not isinstance(module.forward, _Packed):
            module.forward = _Packed(module, kind)


class _Packed:
    """Stands in for a recurrent module's ``forward``."""

    def __init__(self, module: torch.nn.Module, kind: Recurrent) -> None:
        self._continues = kind.continues
        self._forward: Callable[..., torch.Tensor] = module.forward
        self._layer = cast("int", module.layer_idx)
        self._cache = cache_argument(module)

    def __call__(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return _context.get().mix(self._layer, self._mix, hidden_states, continues=self._continues)

    def _mix(self, hidden: torch.Tensor, states: LayerStates) -> torch.Tensor:
        return self._forward(hidden, **{self._cache: states})


def _groups(starts: Int32, slots: Int32, first: npt.NDArray[np.bool_], device: torch.device) -> list[_Group]:
    """Sequences by how many tokens they have, and by whether these are the first."""
    counts = np.diff(starts)
    found = []
    for count, begins in sorted({(int(c), bool(f)) for c, f in zip(counts, first, strict=True) if c > 0}):
        chosen = np.flatnonzero((counts == count) & (first == begins))
        tokens, at = to_device((starts[chosen][:, None] + np.arange(count), slots[chosen]), device)
        found.append(_Group(tokens, at, begins))
    return found
