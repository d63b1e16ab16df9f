"""Weight updates in two phases: read and checked now, written when all who take part are ready to.

An engine keeps one prepared update at a time: it takes as much host memory as the weights do. They are read from a
path, or from a peer: another engine that has them (`devicekit.weights.peer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

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
from devicekit.weights.peer import PeerFetch
from devicekit.weights.store import Staged
from devicekit.weights.update import Updater


@dataclass(frozen=True, slots=True)
class _Prepared:
    update_id: str
    origin: str  # a path, or a peer's URL
    staged: Staged


class Fetch(Protocol):
    """Weights on their way from a peer."""

    def take(self) -> Staged | None:
        """What can be written; ``None``: not yet. Raises what went wrong."""
        ...

    def cancel(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, slots=True)
class _Fetching:
    update_id: str
    origin: str
    fetch: Fetch


class PreparedUpdates:
    """The handlers of `PrepareWeights`, `CommitWeights` and `DiscardWeights`."""

    def __init__(
        self,
        updater: Updater,
        loaders: Mapping[Selector, DiskLoader],
        membership: Membership,
        fetch: Callable[[PrepareWeights], Fetch] | None = None,
    ) -> None:
        """``fetch``: begins to read the weights of a peer; default: `PeerFetch`."""
        self._updater = updater
        self._fetch = fetch or (lambda operation: PeerFetch(updater.store, operation))
        self._fetching: _Fetching | None = None
        self._loaders = loaders
        self._membership = membership
        self._prepared: _Prepared | None = None
        self._committed: UpdateReply | None = None  # the last one
        self._committed_id = ""

    @property
    def update_id(self) -> str | None:
        """The update that can be committed; ``None``: nothing is prepared."""
        return None if self._prepared is None else self._prepared.update_id

    def prepare(self, operation: PrepareWeights) -> Reply | Callable[[], Reply | None]:
        """Read weights and check them: a checkpoint between two forward passes, a peer's while passes go on.

        Raises:
            Conflict: another fleet steers, the memory of the weights is released, or another update is prepared
                and no lease was given.
            InvalidOperation: there is neither a path nor a peer, or both, or no such model.
            ModelError: the checkpoint does not fit, or cannot be read.
        """
        if not operation.update_id or bool(operation.path) is bool(operation.peer):
            raise InvalidOperation(
                "Preparing weights needs an update_id, and the path of a model directory or else a peer."
            )
        self._membership.require(operation.lease)
        self._updater.store.require_mapped()
        origin = operation.path or operation.peer
        for known in (self._prepared, self._fetching):
            if known is None or (known.update_id, known.origin) == (operation.update_id, origin):
                continue
            if not operation.lease or known.update_id == operation.update_id:
                raise Conflict(
                    f"The update {known.update_id!r} of {known.origin} is prepared: commit or discard it."
                )
            self._forget()  # of a process that was killed: whoever has the lease goes on alone
        if self._prepared is not None:
            return self._done(operation, self._prepared)
        if operation.peer:
            return self._from_peer(operation)
        load = load_checkpoint(self._updater.store, self._loaders, operation.selector, operation.path)
        staged = self._updater.stage(load)
        if staged is None:
            raise Conflict("Another rank has not prepared this update.")
        self._prepared = _Prepared(operation.update_id, operation.path, staged)
        return self._done(operation, self._prepared)

    def _from_peer(self, operation: PrepareWeights) -> Callable[[], Reply | None]:
        if self._fetching is None:
            fetch = self._fetch(operation)
            self._fetching = _Fetching(operation.update_id, operation.peer, fetch)
        mine = self._fetching

        def poll() -> Reply | None:
            known = self._prepared
            if known is not None and (known.update_id, known.origin) == (mine.update_id, mine.origin):
                return self._done(operation, known)  # which somebody else has waited for as well
            if self._fetching is not mine:
                raise Conflict(f"The update {mine.update_id!r} of {mine.origin} was given up.")
            try:
                self._membership.require(operation.lease)  # which may have gone to somebody else meanwhile
                if self._updater.store.state.withdrawals.has(operation):
                    raise Conflict("Withdrawn while the weights were on their way. No weight was changed.")
                staged = self._updater.stage(mine.fetch.take)
            except Exception:
                self._forget()
                raise
            if staged is None:
                return None
            self._fetching = None
            self._prepared = _Prepared(mine.update_id, mine.origin, staged)
            return self._done(operation, self._prepared)

        return poll

    def _done(self, operation: PrepareWeights, known: _Prepared) -> Reply:
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
        for known in (self._prepared, self._fetching):
            if known is not None and known.update_id == operation.update_id:
                self._forget()
        return self._reply(operation.id, operation.update_id, "Nothing is prepared under this name any more.")

    def _forget(self) -> None:
        """What is prepared, or on its way: one of the two at most."""
        prepared, self._prepared = self._prepared, None
        fetching, self._fetching = self._fetching, None
        if prepared is not None:
            prepared.staged.close()
        if fetching is not None:
            fetching.fetch.cancel()

    def _reply(self, operation_id: str, update_id: str, message: str, tensors: int = 0) -> PreparedReply:
        version = self._updater.store.state.weight_version
        return PreparedReply(
            operation_id, True, message, update_id=update_id, tensors=tensors, weight_version=version
        )
