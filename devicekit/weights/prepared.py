"""Weight updates in two phases: read and checked now, written when all who take part are ready to.

An engine keeps one prepared update at a time: it takes as much host memory as the weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from devicekit.scheduling.errors import Conflict, InvalidOperation
from devicekit.scheduling.messages import Reply, Selector, UpdateOutcome, UpdateReply
from devicekit.weights.disk import DiskLoader, load_checkpoint
from devicekit.weights.membership import Membership
from devicekit.weights.operations import (
    CommitWeights,
    DiscardWeights,
    PreparedReply,
    PrepareWeights,
)
from devicekit.weights.store import Staged
from devicekit.weights.update import Updater


@dataclass(frozen=True, slots=True)
class _Prepared:
    update_id: str
    path: str
    staged: Staged


class PreparedUpdates:
    """The handlers of `PrepareWeights`, `CommitWeights` and `DiscardWeights`."""

    def __init__(
        self, updater: Updater, loaders: Mapping[Selector, DiskLoader], membership: Membership
    ) -> None:
        self._updater = updater
        self._loaders = loaders
        self._membership = membership
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
            Conflict: another fleet steers, the memory of the weights is released, or another update is prepared
                and no lease was given.
            InvalidOperation: there is no path or no such model.
            ModelError: the checkpoint does not fit, or cannot be read.
        """
        if not operation.update_id or not operation.path:
            raise InvalidOperation("Preparing weights needs an update_id and the path of a model directory.")
        self._membership.require(operation.lease)
        store, known = self._updater.store, self._prepared
        store.require_mapped()
        if known is not None and operation.lease and known.update_id != operation.update_id:
            self._forget(known)  # of a process that was killed: whoever has the lease goes on alone
            known = None
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
            Conflict: nothing is prepared under this name, or another fleet steers.
        """
        self._membership.require(operation.lease)
        if self._committed is not None and operation.update_id == self._committed_id:
            return replace(self._committed, id=operation.id, message="This update was committed before.")
        known = self._prepared
        if known is None or operation.update_id != known.update_id:
            raise Conflict(
                f"No update {operation.update_id!r} is prepared here; there is {self.update_id!r}."
            )
        write = self._updater.begin(operation, lambda: known.staged)

        def poll() -> Reply | None:
            self._membership.require(
                operation.lease
            )  # which may have gone to somebody else while this waited
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
        """Forget what was prepared under this name.

        Raises:
            Conflict: another fleet steers.
        """
        self._membership.require(operation.lease)
        known = self._prepared
        if known is not None and known.update_id == operation.update_id:
            self._forget(known)
        return self._reply(operation.id, operation.update_id, "Nothing is prepared under this name any more.")

    def _forget(self, known: _Prepared) -> None:
        self._prepared = None
        known.staged.close()

    def _reply(self, operation_id: str, update_id: str, message: str, tensors: int = 0) -> PreparedReply:
        version = self._updater.store.state.weight_version
        return PreparedReply(
            operation_id, True, message, update_id=update_id, tensors=tensors, weight_version=version
        )
