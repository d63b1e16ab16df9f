"""Weight update from a local model directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Reply, UpdateWeightsFromDisk
from devicekit.scheduling.state import SchedulerState
from devicekit.weights.update import Loaded, update


class Written(Protocol):
    """What a runner reports of an update."""

    @property
    def tensors(self) -> int: ...

    @property
    def bytes(self) -> int: ...


class DiskLoader(Protocol):
    """A runner that can load another checkpoint of its architecture in place.

    It checks the whole checkpoint before it writes the first tensor, and raises if anything is wrong.
    """

    def update_from_disk(self, path: str) -> Written: ...


def disk_handler(
    state: SchedulerState, runner: DiskLoader
) -> Callable[[UpdateWeightsFromDisk], Reply | Callable[[], Reply | None]]:
    """The handler of `UpdateWeightsFromDisk` for a runner; register it with the scheduler's control."""

    def handle(operation: UpdateWeightsFromDisk) -> Reply | Callable[[], Reply | None]:
        if not operation.path:
            raise InvalidOperation("A weight update from disk needs the path of a model directory.")

        def load() -> Loaded:
            written = runner.update_from_disk(operation.path)
            return Loaded(written.tensors, written.bytes)

        return update(state, operation, load)

    return handle
