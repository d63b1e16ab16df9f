"""The weights being served: finds them by name, checks new ones, and knows which cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from devicekit.device import Device
from devicekit.scheduling.errors import Conflict, InvalidOperation
from devicekit.scheduling.messages import Selector
from devicekit.scheduling.state import SchedulerState
from devicekit.weights import room
from devicekit.weights.checksum import same_bits

HOLD = "weights"
"""The name under which missing weights hold generation back in ``AdmissionGate.holds``."""


ROLLBACK_BYTES = 1 << 30
"""How many bytes of weights are kept in host memory while one update writes them."""

STAGE_BESIDE = 1 << 20
"""Bytes of weights from which on updates are staged in a thread of their own. For fewer that is not worth it."""


class WeightSource(Protocol):
    """An object that holds weights: a runner."""

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight once, by the name that updates use."""
        ...


class Parts(Protocol):
    """What this rank holds of weights that several ranks hold together."""

    def whole_shape(self, name: str, part: Sequence[int]) -> tuple[int, ...]:
        """The shape of the whole weight whose part here has the shape ``part``."""
        ...

    def shard(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part; a view where it can be one."""
        ...

    def whole(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """The whole weight whose part is here. Every rank asks for the same, within `Coordinator.exchanging`."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """One model's weights. ``aliases`` are further names, of tensors that ``source`` gives under another.

    With ``parts``, ``source`` has this rank's part of each. Callers that give or ask for weights know whole ones
    only.
    """

    source: WeightSource
    aliases: Mapping[str, str] = field(default_factory=dict)
    parts: Parts | None = None

    def whole_shape(self, name: str, part: torch.Tensor) -> tuple[int, ...]:
        """As `Parts.whole_shape`."""
        return tuple(part.shape) if self.parts is None else self.parts.whole_shape(name, part.shape)

    def shard(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """As `Parts.shard`."""
        return whole if self.parts is None else self.parts.shard(name, whole)

    def whole(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """As `Parts.whole`."""
        return part if self.parts is None else self.parts.whole(name, part)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an update wrote: names as (selector, name), and their bytes."""

    names: frozenset[tuple[Selector, str]]
    bytes: int
    settle: Callable[[], None] = lambda: None  # called once every rank has written


class Staged(Protocol):
    """New weights that were loaded and checked, ready to be written. The model has not changed yet."""

    @property
    def names(self) -> frozenset[tuple[Selector, str]]:
        """The weights that writing will change."""
        ...

    def write(self) -> Loaded:
        """Change the model. Raises if it fails half-way; then ``names`` hold old values, new ones, or neither."""
        ...

    def close(self) -> None:
        """Drop what was staged, written or not."""
        ...


class PartlyWritten(Exception):
    """Writing failed after it had begun. ``names`` hold old values, new ones, or neither."""

    def __init__(self, names: Iterable[tuple[Selector, str]], cause: BaseException) -> None:
        self.names = frozenset(names)
        # With their number: ranks that tell the same story have reached the same weights.
        super().__init__(f"{type(cause).__name__}: {cause}, after {len(self.names)} weights")


@dataclass(frozen=True, slots=True)
class _Write:
    key: tuple[Selector, str]
    old: torch.Tensor
    new: torch.Tensor


class StagedTensors:
    """Tensors in the types of the weights whose place they take, on their device or in host memory."""

    def __init__(self, writes: list[_Write], on_close: Callable[[], None] | None = None) -> None:
        self._writes = writes
        self._on_close = on_close

    @property
    def names(self) -> frozenset[tuple[Selector, str]]:
        return frozenset(one.key for one in self._writes)

    def write(self) -> Loaded:
        """Raises `PartlyWritten` with those weights that were reached."""
        with torch.no_grad():
            for count, one in enumerate(self._writes):
                try:
                    one.old.copy_(one.new)
                except Exception as error:
                    reached = self._writes[: count + 1]
                    raise PartlyWritten((done.key for done in reached), error) from error
        return Loaded(self.names, sum(one.old.nbytes for one in self._writes))

    def close(self) -> None:
        self._writes = []
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


class WeightStore:
    """The weights of a target model and, where there is one, of its draft.

    ``rollback_bytes`` may be set: updates that write more are not kept in host memory meanwhile, and leave the
    weights partly written where they fail half-way. 0 spares every update the copy. Models of fewer bytes than
    ``stage_beside``, which may be set too, are staged between two passes. With ``refuse_nonfinite`` updates with a
    value that is NaN or infinite are refused whole.
    """

    def __init__(
        self,
        state: SchedulerState,
        device: Device,
        target: Model,
        draft: Model | None = None,
        *,
        refuse_nonfinite: bool = False,
    ) -> None:
        self.state = state
        self._token = state.gate.token(HOLD)
        self.device = device
        self.models = {Selector.TARGET: target}
        if draft is not None:
            self.models[Selector.DRAFT] = draft
        self.rollback_bytes = ROLLBACK_BYTES
        self.stage_beside = STAGE_BESIDE
        self.refuse_nonfinite = refuse_nonfinite
        self._untrusted: set[tuple[Selector, str]] = set()
        self.released = False
        self.mappings = 0  # how many times the weights' memory went or came
        self._turn = ""

    def selected(self, selector: Selector) -> dict[Selector, Model]:
        """The models that a selector means.

        Raises:
            InvalidOperation: there is no such model.
        """
        if selector is Selector.ALL:
            return self.models
        if selector not in self.models:
            raise InvalidOperation(f"This engine has no {selector.value} model.")
        return {selector: self.models[selector]}

    def tensors(self, selector: Selector) -> dict[tuple[Selector, str], torch.Tensor]:
        """Every weight of the selected models."""
        found: dict[tuple[Selector, str], torch.Tensor] = {}
        for kind, model in self.selected(selector).items():
            found |= {(kind, name): tensor for name, tensor in model.source.named_weights()}
        return found

    def note_released(self, released: bool) -> None:
        """Record whether the weights' memory is released, here or on another rank."""
        self.mappings += released != self.released
        self.released = released

    @property
    def staging(self) -> str:
        """Id of the update that is being staged or waits to be written; empty: there is none."""
        return self._turn

    def take_turn(self, operation_id: str) -> bool:
        """Whether it is this update's turn: two that are staged at once would take twice the memory."""
        self._turn = self._turn or operation_id
        return self._turn == operation_id

    def end_turn(self, operation_id: str) -> None:
        """End this update's turn, if it was its."""
        if self._turn == operation_id:
            self._turn = ""

    def require_mapped(self) -> None:
        """Raise `Conflict` while the weights' memory is released."""
        if self.released:
            raise Conflict("The memory of the weights is released: resume it first.")

    # -- Writing ----------------------------------------------------------------------------------------------

    def stage(
        self,
        given: Iterable[tuple[str, torch.Tensor]],
        selector: Selector,
        on_close: Callable[[], None] | None = None,
    ) -> StagedTensors:
        """Find the weights of the same name, and bring the tensors to where they are, converting floating types.

        Args:
            on_close: called when what was staged is let go.

        Raises:
            InvalidOperation: a name, shape or type does not fit.
            NoRoom: there is not the memory for it.
        """
        self.require_mapped()
        with torch.no_grad():
            found = self._match(given, selector)
            copied = sum(one.old.nbytes for one in found if not _is_in_place(one))
            self.require_room((one.key for one in found), on_device=copied)
            self.check_finite((one.key[1], one.new) for one in found)
            staged = [_Write(one.key, one.old, self._own_part(one)) for one in found]
            _refuse_contradictions(staged)
        return StagedTensors(staged, on_close)

    def stage_parts(self, parts: Mapping[tuple[Selector, str], torch.Tensor]) -> StagedTensors:
        """Stage this rank's own parts, which fit. They stay where they are until they are written."""
        self.require_mapped()
        weights = self.tensors(Selector.ALL)
        return StagedTensors([_Write(key, weights[key], part) for key, part in parts.items()])

    def _own_part(self, one: _Write) -> torch.Tensor:
        """This rank's part of what was given, on the weight's device and in its type."""
        kind, name = one.key
        part = self.models[kind].shard(name, one.new)
        return part.to(one.old.device, one.old.dtype)

    def require_room(
        self, keys: Iterable[tuple[Selector, str]], *, on_host: int = 0, on_device: int = 0
    ) -> None:
        """Raise `NoRoom` unless new weights fit in memory, beside their old values if those are kept."""
        weights = self.tensors(Selector.ALL)
        kept = sum(weights[key].nbytes for key in set(keys))
        if kept > self.rollback_bytes:
            kept = 0
        room.require_room(self.device, on_host=on_host, on_device=on_device, kept=kept)

    def require_room_for(self, selector: Selector) -> None:
        """As `require_room`, for new values of all weights of these models, in host memory."""
        weights = self.tensors(selector)
        self.require_room(weights, on_host=sum(one.nbytes for one in weights.values()))

    def check_finite(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Raise `InvalidOperation` for values that are NaN or infinite, if those are to be refused."""
        if self.refuse_nonfinite and (bad := nonfinite(tensors)):
            raise InvalidOperation(f"Nothing was written: {_summary(bad)}.")

    def _match(self, given: Iterable[tuple[str, torch.Tensor]], selector: Selector) -> list[_Write]:
        """Find each tensor's weight; in both models where both have it."""
        weights = self.tensors(selector)
        models = self.selected(selector)
        found: list[_Write] = []
        problems: list[str] = []
        for name, new in given:
            keys = [(kind, model.aliases.get(name, name)) for kind, model in models.items()]
            matches = [(key, weights[key]) for key in keys if key in weights]
            if not matches:
                problems.append(f"{name} is unknown")
            for key, old in matches:
                if reason := _misfit(models[key[0]].whole_shape(key[1], old), old.dtype, new):
                    problems.append(f"{name} {reason}")
                found.append(_Write(key, old, new))
        if not found and not problems:
            problems.append("no tensor was given")
        if problems:
            raise InvalidOperation(f"Nothing was written: {_summary(problems)}.")
        return found

    # -- Trust ------------------------------------------------------------------------------------------------

    @property
    def untrusted(self) -> frozenset[tuple[Selector, str]]:
        """Weights whose values are unknown: generation waits until each was written."""
        return frozenset(self._untrusted)

    def distrust(self, names: Iterable[tuple[Selector, str]]) -> None:
        """Record that the values of these weights are unknown."""
        self._untrusted.update(names)
        self._hold()

    def trust(self, names: Iterable[tuple[Selector, str]]) -> None:
        """Record that these weights have been written."""
        self._untrusted.difference_update(names)
        self._hold()

    def _hold(self) -> None:
        if not self._untrusted:
            self._token.release()
            return
        first = min(name for _, name in self._untrusted)
        total = len(self.tensors(Selector.ALL))
        self._token.hold(
            f"{len(self._untrusted)} of {total} weights have to be written first ({first} is one)"
        )


def nonfinite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Which tensors hold values that are NaN or infinite."""
    with torch.no_grad():
        return [
            f"{name} holds values that are NaN or infinite"
            for name, tensor in tensors
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
        ]


def _is_in_place(one: _Write) -> bool:
    """Whether what was given is on the weight's device already, and in its type."""
    return one.new.device == one.old.device and one.new.dtype == one.old.dtype


def _misfit(shape: tuple[int, ...], dtype: torch.dtype, new: torch.Tensor) -> str | None:
    if tuple(new.shape) != shape:
        return f"has shape {list(new.shape)}, not {list(shape)}"
    if new.dtype != dtype and not (new.is_floating_point() and dtype.is_floating_point):
        return f"is {new.dtype}, which does not convert to {dtype}"
    return None


def _refuse_contradictions(staged: list[_Write]) -> None:
    """Raise where one weight is given twice, by one name or by two, with different values."""
    seen: dict[tuple[Selector, str], torch.Tensor] = {}
    for one in staged:
        known = seen.setdefault(one.key, one.new)
        # What is given once is not compared with itself: that costs a pass over it.
        if known is not one.new and not same_bits(known, one.new):
            raise InvalidOperation(f"Nothing was written: {one.key[1]} was given two different values.")


def _summary(problems: list[str]) -> str:
    shown = "; ".join(problems[:5])
    return shown if len(problems) <= 5 else f"{shown}; and {len(problems) - 5} more"
