"""Weight updates in two phases: read and checked now, written when all who take part are ready to.

An engine keeps one prepared update at a time: it takes as much host memory as the weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from devicekit.scheduling.errors import Conflict, InvalidOperation
from devicekit.scheduling.messages import Reply, Selector, UpdateOutcome, UpdateReply
from devicekit.weights.disk import DiskLoader, load_checkpoint
from devicekit.weights.operations import (
    CommitWeights,
    DiscardWeights,
    JoinFleet,
    PreparedReply,
    PrepareWeights,
)
from devicekit.weights.reading import total_checksum
from devicekit.weights.store import Staged, WeightStore
from devicekit.weights.update import Updater

HOLD = "fleet"


@dataclass(frozen=True, slots=True)
class _Prepared:
    update_id: str
    path: str
    staged: Staged


class PreparedUpdates:
    """The handlers of `PrepareWeights`, `CommitWeights` and `DiscardWeights`."""

    def __init__(self, updater: Updater, loaders: Mapping[Selector, DiskLoader]) -> None:
        self._updater = updater
        self._loaders = loaders
        self._prepared: _Prepared | None = None
        self._committed: UpdateReply | None = None  # the last one
        self._committed_id = ""

    @property
    def update_id(self) -> str | None:
        """The update that can be committed; ``None``: nothing is prepared."""
        return None if self._prepared is None else self._prepared.update_id

    def prepare(self, operation: PrepareWeights) -> Reply:
        """Read the checkpoint and check it, between two forward passes.

        Raises:
            Conflict: another update is prepared, or the memory of the weights is released.
            InvalidOperation: there is no path or no such model.
            ModelError: the checkpoint does not fit, or cannot be read.
        """
        if not operation.update_id or not operation.path:
            raise InvalidOperation("Preparing weights needs an update_id and the path of a model directory.")
        store, known = self._updater.store, self._prepared
        store.require_mapped()
        if known is None:
            load = load_checkpoint(store, self._loaders, operation.selector, operation.path)
            staged = self._updater.stage(load)
            if staged is None:
                raise Conflict("Another rank has not prepared this update.")
            known = self._prepared = _Prepared(operation.update_id, operation.path, staged)
        elif (known.update_id, known.path) != (operation.update_id, operation.path):
            raise Conflict(
                f"The update {known.update_id!r} of {known.path} is prepared: commit or discard it."
            )
        count = len(known.staged.names)
        return self._reply(operation.id, operation.update_id, f"{count} weights can be written.", count)

    def commit(self, operation: CommitWeights) -> Reply | Callable[[], Reply | None]:
        """Write what was prepared, as soon as any other update would be written.

        Raises:
            Conflict: nothing is prepared under this name.
        """
        if self._committed is not None and operation.update_id == self._committed_id:
            return replace(self._committed, id=operation.id, message="This update was committed before.")
        known = self._prepared
        if known is None or operation.update_id != known.update_id:
            raise Conflict(
                f"No update {operation.update_id!r} is prepared here; there is {self.update_id!r}."
            )
        write = self._updater.begin(operation, lambda: known.staged)

        def poll() -> Reply | None:
            try:
                reply = write()
            except Exception:
                self._prepared = None
                raise
            if reply is not None:
                self._prepared = None  # written or taken back, it is used up
                if isinstance(reply, UpdateReply) and reply.outcome is not UpdateOutcome.UNCHANGED:
                    self._committed, self._committed_id = reply, operation.update_id
            return reply

        return poll

    def discard(self, operation: DiscardWeights) -> Reply:
        """Forget what was prepared under this name."""
        known = self._prepared
        if known is not None and known.update_id == operation.update_id:
            self._prepared = None
            known.staged.close()
        return self._reply(operation.id, operation.update_id, "Nothing is prepared under this name any more.")

    def _reply(self, operation_id: str, update_id: str, message: str, tensors: int = 0) -> PreparedReply:
        version = self._updater.store.state.weight_version
        return PreparedReply(
            operation_id, True, message, update_id=update_id, tensors=tensors, weight_version=version
        )


class Membership:
    """Holds generation back until the engine has the weights of the fleet that it belongs to."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._hold = store.state.gate.token(HOLD)
        self.waiting = False  # for the fleet's weights; to be read only

    def wait_for_fleet(self) -> None:
        """Generate nothing until `join`."""
        self.waiting = True
        self._hold.hold("it waits for the weights of its fleet: POST /join_fleet once it has them")

    def join(self, operation: JoinFleet) -> Reply:
        """Generate, if the weights are the fleet's.

        Raises:
            Conflict: they are not.
        """
        version = self._store.state.weight_version
        if operation.weight_version != version:
            raise Conflict(f"The fleet serves {operation.weight_version!r}, and this engine has {version!r}.")
        if operation.checksum is not None and (mine := total_checksum(self._store)) != operation.checksum:
            raise Conflict(f"The fleet's weights have the checksum {operation.checksum}, these have {mine}.")
        self.waiting = False
        self._hold.release()
        return PreparedReply(operation.id, True, "Part of the fleet.", weight_version=version)
