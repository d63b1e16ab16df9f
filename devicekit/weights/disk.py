"""Weight update from a local model directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Reply, Selector, UpdateWeightsFromDisk
from devicekit.weights.store import Loaded, Staged, WeightStore
from devicekit.weights.update import Updater

if TYPE_CHECKING:
    import torch


class Written(Protocol):
    """A runner's report of an update."""

    @property
    def tensors(self) -> int: ...

    @property
    def bytes(self) -> int: ...


class StagedCheckpoint(Protocol):
    """A checkpoint that was read and fits."""

    def write(self) -> Written: ...

    def settle(self) -> None:
        """Remember the new source of the weights: they were written, and will not be taken back."""
        ...


@runtime_checkable
class ShowsTensors(Protocol):
    """A checkpoint that was read and can be looked at before it is written."""

    def named_tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """What would be written, by name."""
        ...


class DiskLoader(Protocol):
    """A runner that can load another checkpoint of its architecture in place.

    It reads in any thread, while the model computes in another.
    It checks the whole checkpoint before it offers to write the first tensor, and raises if anything is wrong.
    """

    def stage_from_disk(self, path: str, within: Sequence[str] = ()) -> StagedCheckpoint:
        """Read and check a checkpoint.

        Args:
            path: of its directory.
            within: directories, without links in their paths, in which each of its files has to lie, links
                followed; none: anywhere. A file that lies elsewhere is refused.
        """
        ...


def disk_handler(
    updater: Updater, loaders: Mapping[Selector, DiskLoader]
) -> Callable[[UpdateWeightsFromDisk], Callable[[], Reply | None]]:
    """The handler of `UpdateWeightsFromDisk`; ``loaders`` by the model they load."""

    def handle(operation: UpdateWeightsFromDisk) -> Callable[[], Reply | None]:
        if not operation.path:
            raise InvalidOperation("A weight update from disk needs the path of a model directory.")
        load = load_checkpoint(updater.store, loaders, operation.selector, operation.path, operation.within)
        return updater.begin(operation, load)

    return handle


def load_checkpoint(
    store: WeightStore,
    loaders: Mapping[Selector, DiskLoader],
    selector: Selector,
    path: str,
    within: Sequence[str],
) -> Callable[[], Staged]:
    """A function that reads a checkpoint for the selected models, and checks that it fits.

    Args:
        store: that has the weights of the models.
        loaders: by the model that they load.
        selector: of the models.
        path: of the checkpoint's directory.
        within: directories in which its files have to lie, links followed; none: anywhere.

    Raises:
        InvalidOperation: there is no such model, or it cannot be loaded from disk.
    """
    chosen = list(store.selected(selector))
    if missing := [kind.value for kind in chosen if kind not in loaders]:
        raise InvalidOperation(f"The {missing[0]} model cannot be loaded from disk.")
    return lambda: _stage(store, loaders, chosen, path, within)


@dataclass(slots=True)
class _StagedModels:
    """One checkpoint for each of the chosen models."""

    names: frozenset[tuple[Selector, str]]
    models: list[StagedCheckpoint]

    def write(self) -> Loaded:
        models = self.models

        def settle() -> None:
            for one in models:
                one.settle()

        return Loaded(self.names, sum(one.write().bytes for one in models), settle)

    def close(self) -> None:
        self.models = []


def _stage(
    store: WeightStore,
    loaders: Mapping[Selector, DiskLoader],
    chosen: list[Selector],
    path: str,
    within: Sequence[str],
) -> _StagedModels:
    names = frozenset[tuple[Selector, str]]().union(*(store.tensors(kind) for kind in chosen))
    store.require_room_for(Selector.ALL if len(chosen) > 1 else chosen[0])
    models = [loaders[kind].stage_from_disk(path, within) for kind in chosen]
    if store.refuse_nonfinite:
        for one in models:
            if isinstance(one, ShowsTensors):
                store.check_finite(one.named_tensors())
    return _StagedModels(names, models)
