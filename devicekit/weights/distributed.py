"""Weight update over a process group: rank 0, the trainer, broadcasts; this process receives and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup, Work

from devicekit.scheduling.errors import RanksFailed
from devicekit.scheduling.messages import Reply
from devicekit.weights.bucket import BucketEntry, FlatBucket, layout
from devicekit.weights.groups import GroupFailed, UpdateGroups
from devicekit.weights.operations import UpdateWeightsFromDistributed
from devicekit.weights.room import NoRoom, require_room
from devicekit.weights.store import StagedTensors
from devicekit.weights.update import Updater


def distributed_handler(
    updater: Updater, groups: UpdateGroups
) -> Callable[[UpdateWeightsFromDistributed], Callable[[], Reply | None]]:
    """The handler of `UpdateWeightsFromDistributed`."""

    def handle(operation: UpdateWeightsFromDistributed) -> Callable[[], Reply | None]:
        entries = layout(operation.names, operation.dtypes, operation.shapes)
        groups.get(operation.group_name)
        receiving: _Receiving | None = None

        def arrived() -> bool:
            nonlocal receiving
            state = updater.store.state
            here, failure = False, None
            try:
                if receiving is None:
                    group, timeout = groups.get(operation.group_name)
                    device = updater.store.device
                    require_room(device, on_device=entries[-1].end if entries else 0)
                    deadline = state.clock.now() + timeout
                    receiving = _receive(group, entries, device.torch_device, operation.flattened, deadline)
                here = receiving.arrived(state.clock.now())
            except Exception as error:
                failure = error
            try:
                return state.coordinator.ready(here, failure)
            except (GroupFailed, RanksFailed, NoRoom):
                groups.discard(operation.group_name)  # its ranks no longer agree on what comes next
                raise

        def load() -> StagedTensors:
            # What does not fit is refused only now: rank 0 would wait for a receiver that never comes.
            given: list[tuple[str, torch.Tensor]] = []
            if receiving is not None:
                given, receiving.tensors = receiving.tensors, []
            return updater.store.stage(given, operation.selector)

        return updater.begin(operation, load, arrived)

    return handle


@dataclass(slots=True)
class _Receiving:
    """Broadcasts under way into fresh memory; the weights are not touched."""

    works: list[Work]
    tensors: list[tuple[str, torch.Tensor]]
    deadline: float

    def arrived(self, now: float) -> bool:
        """Whether everything has come. Does not wait.

        Raises:
            GroupFailed: a broadcast failed, or the time is up.
        """
        if not all(work.is_completed() for work in self.works):
            if now < self.deadline:
                return False
            raise GroupFailed(
                "The weights did not arrive in time. Nothing was written; join the group again."
            )
        try:
            for work in self.works:
                work.wait()
        except RuntimeError as error:
            raise GroupFailed(
                f"A broadcast failed: {error}. Nothing was written; join the group again."
            ) from error
        return True


def _receive(
    group: ProcessGroup,
    entries: tuple[BucketEntry, ...],
    device: torch.device,
    flattened: bool,
    deadline: float,
) -> _Receiving:
    if flattened:
        flat = torch.empty(entries[-1].end if entries else 0, dtype=torch.uint8, device=device)
        return _Receiving([group.broadcast(flat, 0)], list(FlatBucket(flat, entries).unpack()), deadline)
    tensors = [(one.name, torch.empty(one.shape, dtype=one.dtype, device=device)) for one in entries]
    return _Receiving([group.broadcast(tensor, 0) for _, tensor in tensors], tensors, deadline)
