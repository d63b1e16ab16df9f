"""Weight update from a local model directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from devicekit.contract.errors import DeviceKitError
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Reply, Selector, UpdateWeightsFromDisk
from devicekit.weights.store import Loaded, PartlyWritten, WeightStore
from devicekit.weights.update import Updater


class Written(Protocol):
    """What a runner reports of an update."""

    @property
    def tensors(self) -> int: ...

    @property
    def bytes(self) -> int: ...


class DiskLoader(Protocol):
    """A runner that can load another checkpoint of its architecture in place.

    It checks the whole checkpoint before it writes the first tensor, and raises a `DeviceKitError` if anything is
    wrong. Any other exception means that it failed while writing.
    """

    def update_from_disk(self, path: str) -> Written: ...


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
        return updater.begin(operation, lambda: _load(updater.store, loaders, chosen, operation.path))

    return handle


def _load(
    store: WeightStore, loaders: Mapping[Selector, DiskLoader], chosen: list[Selector], path: str
) -> Loaded:
    names: frozenset[tuple[Selector, str]] = frozenset()
    size = 0
    for kind in chosen:
        touched = names | frozenset(store.tensors(kind))
        try:
            size += loaders[kind].update_from_disk(path).bytes
        except DeviceKitError as error:
            if not names:
                raise
            raise PartlyWritten(touched, error) from error  # a draft of another version than its target
        except Exception as error:
            raise PartlyWritten(touched, error) from error
        names = touched
    return Loaded(names, size)
