"""Weight update from a local model directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Reply, Selector, UpdateWeightsFromDisk
from devicekit.weights.rollback import OldValues
from devicekit.weights.store import Loaded, WeightStore
from devicekit.weights.update import Updater


class Written(Protocol):
    """What a runner reports of an update."""

    @property
    def tensors(self) -> int: ...

    @property
    def bytes(self) -> int: ...


class StagedModel(Protocol):
    """A checkpoint that was read and fits."""

    def write(self) -> Written: ...


class DiskLoader(Protocol):
    """A runner that can load another checkpoint of its architecture in place.

    It checks the whole checkpoint before it offers to write the first tensor, and raises if anything is wrong.
    """

    def stage_from_disk(self, path: str) -> StagedModel: ...


def disk_handler(
    updater: Updater, loaders: Mapping[Selector, DiskLoader]
) -> Callable[[UpdateWeightsFromDisk], Callable[[], Reply | None]]:
    """The handler of `UpdateWeightsFromDisk`; ``loaders`` by the model they load."""

    def handle(operation: UpdateWeightsFromDisk) -> Callable[[], Reply | None]:
        if not operation.path:
            raise InvalidOperation("A weight update from disk needs the path of a model directory.")
        chosen = list(updater.store.selected(operation.selector))
        if missing := [kind.value for kind in chosen if kind not in loaders]:
            raise InvalidOperation(f"The {missing[0]} model cannot be loaded from disk.")
        return updater.begin(operation, lambda: _stage(updater.store, loaders, chosen, operation.path))

    return handle


@dataclass(slots=True)
class _StagedModels:
    """One checkpoint for each of the chosen models."""

    weights: dict[tuple[Selector, str], torch.Tensor]  # whose place they take
    models: list[StagedModel]
    rollback_bytes: int

    @property
    def names(self) -> frozenset[tuple[Selector, str]]:
        return frozenset(self.weights)

    def write(self) -> Loaded:
        """Raises `RolledBack` if it fails half-way and all of it was kept."""
        with OldValues(self.weights.values(), self.rollback_bytes) as old:
            for weight in self.weights.values():
                old.keep(weight)
            size = sum(one.write().bytes for one in self.models)
        return Loaded(self.names, size)

    def close(self) -> None:
        self.models = []


def _stage(
    store: WeightStore, loaders: Mapping[Selector, DiskLoader], chosen: list[Selector], path: str
) -> _StagedModels:
    weights = {key: tensor for kind in chosen for key, tensor in store.tensors(kind).items()}
    models = [loaders[kind].stage_from_disk(path) for kind in chosen]
    return _StagedModels(weights, models, store.rollback_bytes)
