"""Weight updates in two phases: read and checked now, written when all engines that take part are ready.

An engine keeps one prepared update at a time: it takes as much host memory as the weights do, and as much again
for the old values where those are kept. The weights are read from a path, or from a peer: another engine that has
them (`devicekit.weights.peer`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Protocol

from devicekit.contract.text import shown
from devicekit.coordination import run_on_all_ranks
from devicekit.scheduling.errors import Conflict, InvalidOperation
from devicekit.scheduling.messages import Reply, Selector, UpdateOutcome, UpdateReply
from devicekit.scheduling.verbs.awaiting import polled
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
from devicekit.weights.update import Ready, Updater


class Fetch(Protocol):
    """Weights that are being read from a peer."""

    def take(self) -> Staged | None:
        """The weights, ready to be written; ``None``: not yet. Raises what went wrong."""
        ...

    def cancel(self) -> None:
        """Stop reading."""
        ...


FetchPeer = Callable[[PrepareWeights], Fetch]


@dataclass(slots=True)
class _Prepared:
    """An update that is being read, or can be written."""

    update_id: str
    origin: str  # a path, or a peer's URL
    bring: Generator[None, None, Ready]
    ready: Ready | None = None  # None: on its way

    def go_on(self) -> None:
        """Advance it as far as it goes without waiting."""
        try:
            next(self.bring)
        except StopIteration as end:
            self.ready = end.value

    def close(self) -> None:
        """Drop it."""
        self.bring.close()
        if self.ready is not None:
            self.ready.close()


@dataclass(frozen=True, slots=True)
class _Committed:
    """A committed update: its answer, and the state of the weights after it."""

    update_id: str
    reply: UpdateReply
    left: Hashable


class PreparedUpdates:
    """The handlers of `PrepareWeights`, `CommitWeights` and `DiscardWeights`."""

    def __init__(
        self,
        updater: Updater,
        loaders: Mapping[Selector, DiskLoader],
        membership: Membership,
        fetch: FetchPeer | None = None,
    ) -> None:
        """``fetch``: begins to read the weights of a peer; default: `PeerFetch`."""
        self._updater = updater
        self._fetch = fetch or (lambda operation: PeerFetch(updater.store, operation))
        self._loaders = loaders
        self._membership = membership
        self._prepared: _Prepared | None = None
        self._committing = False
        self._committed: _Committed | None = None  # the last one

    @property
    def update_id(self) -> str | None:
        """The update that can be committed; ``None``: nothing is prepared."""
        known = self._prepared
        return None if known is None or known.ready is None else known.update_id

    def prepare(self, operation: PrepareWeights) -> Callable[[], Reply | None]:
        """Read weights and check them, a checkpoint's or a peer's, while requests go on.

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
        origin, known = operation.path or operation.peer, self._prepared
        if known is not None and (known.update_id, known.origin) != (operation.update_id, origin):
            if self._committing or not operation.lease or known.update_id == operation.update_id:
                raise Conflict(
                    f"The update {shown(known.update_id)} of {known.origin} is prepared: commit or discard it."
                )
            self._forget()  # of a process that was killed: whoever has the lease goes on alone
        if self._prepared is None:
            bring = self._from_peer(operation) if operation.peer else self._from_disk(operation)
            self._prepared = _Prepared(operation.update_id, origin, bring)
        return polled(self._await(operation, self._prepared))

    def _await(self, operation: PrepareWeights, mine: _Prepared) -> Generator[None, None, Reply]:
        while self._prepared is mine and mine.ready is None:
            try:
                self._membership.require(operation.lease)  # which may have gone to somebody else meanwhile
                if self._updater.store.state.withdrawals.has(operation):
                    raise Conflict("Withdrawn while the weights were on their way. No weight was changed.")
                mine.go_on()
            except Exception:
                self._forget()
                raise
            if mine.ready is None:
                yield
        if mine.ready is None or self._prepared is not mine:
            became = "given up" if mine.ready is None else "committed or discarded meanwhile"
            raise Conflict(f"The update {shown(mine.update_id)} of {mine.origin} was {became}.")
        count = len(mine.ready.staged.names)
        return self._reply(operation.id, operation.update_id, f"{count} weights can be written.", count)

    def _from_disk(self, operation: PrepareWeights) -> Generator[None, None, Ready]:
        updater = self._updater
        with updater.turn(operation.id) as mine:
            while not mine():
                yield
            load = load_checkpoint(
                updater.store, self._loaders, operation.selector, operation.path, operation.within
            )
            return (yield from updater.ready(load))

    def _from_peer(self, operation: PrepareWeights) -> Generator[None, None, Ready]:
        """Fetch before taking a turn: a peer may be slow, and other updates need not wait for it."""
        updater, store = self._updater, self._updater.store
        run_on_all_ranks(store.state.coordinator, lambda: store.require_room_for(Selector.TARGET))
        fetch = self._fetch(operation)
        try:
            staged = yield from updater.received(fetch.take)
        finally:
            fetch.cancel()  # what was taken stays
        with ExitStack() as unless_ready, updater.turn(operation.id) as mine:
            unless_ready.callback(staged.close)
            while not mine():
                yield
            ready = yield from updater.ready(lambda: staged)
            unless_ready.pop_all()
            return ready

    def commit(self, operation: CommitWeights) -> Callable[[], Reply | None]:
        """Write what was prepared, as soon as any other update would be written.

        Raises:
            Conflict: nothing is prepared under this name, or another fleet steers.
        """
        self._membership.require(operation.lease)
        return polled(self._commit(operation))

    def _commit(self, operation: CommitWeights) -> Generator[None, None, Reply]:
        while self._committing or self._is_on_its_way(operation.update_id):
            yield
        self._membership.require(operation.lease)
        known, done = self._prepared, self._committed
        if known is None or known.ready is None or operation.update_id != known.update_id:
            if done is not None and (done.update_id, done.left) == (operation.update_id, self._weights_now):
                return replace(done.reply, id=operation.id, message="This update was committed before.")
            raise Conflict(
                f"No update {shown(operation.update_id)} is prepared here; there is {shown(self.update_id)}."
            )
        self._committing = True
        try:
            with closing(self._updater.run_prepared(operation, known.ready)) as run:
                write = polled(run)
                while (reply := write()) is None:
                    yield
                    # The lease may have gone to somebody else while this waited.
                    self._membership.require(operation.lease)
        finally:
            self._prepared, self._committing = None, False  # written, taken back or refused, it is used up
        if isinstance(reply, UpdateReply) and reply.outcome is not UpdateOutcome.UNCHANGED:
            self._committed = _Committed(operation.update_id, reply, self._weights_now)
        return reply

    @property
    def _weights_now(self) -> Hashable:
        return self._updater.weights_now, self._updater.store.state.weight_version

    def _is_on_its_way(self, update_id: str) -> bool:
        known = self._prepared
        return known is not None and known.ready is None and known.update_id == update_id

    def discard(self, operation: DiscardWeights) -> Callable[[], Reply | None]:
        """Forget what was prepared under this name, or is on its way.

        Raises:
            Conflict: another fleet steers.
        """
        self._membership.require(operation.lease)
        return polled(self._discard(operation))

    def _discard(self, operation: DiscardWeights) -> Generator[None, None, Reply]:
        while self._committing:
            yield
        if self._prepared is not None and self._prepared.update_id == operation.update_id:
            self._forget()
        return self._reply(operation.id, operation.update_id, "Nothing is prepared under this name any more.")

    def _forget(self) -> None:
        """Drop what is prepared, or being read."""
        known, self._prepared = self._prepared, None
        if known is not None:
            known.close()

    def _reply(self, operation_id: str, update_id: str, message: str, tensors: int = 0) -> PreparedReply:
        version = self._updater.store.state.weight_version
        return PreparedReply(
            operation_id, True, message, update_id=update_id, tensors=tensors, weight_version=version
        )
