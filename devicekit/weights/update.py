"""What all weight updates share: when they may run, what happens to caches, and what they answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.records import ErrorKind
from devicekit.contract.text import shown
from devicekit.coordination import run_on_all_ranks
from devicekit.oom import describe as describe_error
from devicekit.release import ReleasePoint
from devicekit.scheduling.messages import (
    Refusal,
    Reply,
    Rollback,
    Selector,
    Staging,
    UpdateOutcome,
    UpdateReply,
    UpdateWeights,
    describe,
    emptied,
)
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.awaiting import polled
from devicekit.scheduling.verbs.flush import flush_now
from devicekit.scheduling.verbs.pause import abort_requests
from devicekit.weights.beside import Task
from devicekit.weights.operations import BeginWeightUpdate
from devicekit.weights.rollback import OldValues, RolledBack
from devicekit.weights.session import UpdateSession
from devicekit.weights.store import Loaded, PartlyWritten, Staged, WeightStore

_log = logging.getLogger(__name__)

Load = Callable[[], Staged]
"""Brings new weights and checks them. It writes nothing, and may be called in any thread."""


@dataclass(frozen=True, slots=True)
class Ready:
    """New weights that only have to be written, and the old values if they are kept."""

    staged: Staged
    old: OldValues
    staging: Staging

    def close(self) -> None:
        """Drop what was staged. A failure here on one rank alone does not count as that rank's answer."""
        try:
            self.staged.close()
        except Exception as error:
            _log.warning("what an update had staged was not let go: %s", describe_error(error))


class Updater:
    """Runs weight updates, one at a time: staged while requests go on, and written between two forward passes."""

    def __init__(self, store: WeightStore) -> None:
        self.store = store
        self.session = UpdateSession(store.state)

    def begin_session(self, operation: BeginWeightUpdate) -> Callable[[], Reply | None]:
        """Open a session, as `UpdateSession.begin`.

        Raises:
            InvalidOperation: the selected model does not exist.
        """
        self.store.selected(operation.selector)
        return self.session.begin(operation)

    def begin(
        self, operation: UpdateWeights, load: Load, arrived: Callable[[], bool] = lambda: True
    ) -> Callable[[], Reply | None]:
        """Stage an update while requests go on, and write it as soon as it may be.

        While paused, at once: requests in flight keep their KV and go on with the new weights. Otherwise it waits
        until no request holds KV; new ones stay in the queue meanwhile.

        Args:
            load: as `Load`; no rank writes before all have loaded.
            arrived: whether what ``load`` needs is there on every rank; asked in each step.

        Raises:
            Conflict: the memory of the weights is released.
            InvalidOperation: the selected model does not exist.
        """
        self._accept(operation)
        return polled(self._run(operation, lambda: self.ready(load), arrived))

    def run_prepared(self, operation: UpdateWeights, prepared: Ready) -> Generator[None, None, Reply]:
        """As `begin`, for an update that is staged already, as a generator. Raises as that does."""
        self._accept(operation)

        def at_hand() -> Generator[None, None, Ready]:
            self.store.require_mapped()
            yield from ()
            return prepared

        return self._run(operation, at_hand, lambda: True)

    def _accept(self, operation: UpdateWeights) -> None:
        state = self.store.state
        self.store.require_mapped()
        self.store.selected(operation.selector)
        if operation.abort_all_requests:
            abort_requests(state, list(state.requests.values()), "The weights are being updated.")

    def _run(
        self,
        operation: UpdateWeights,
        make_ready: Callable[[], Generator[None, None, Ready]],
        arrived: Callable[[], bool],
    ) -> Generator[None, None, Reply]:
        state = self.store.state
        try:
            while not arrived():
                yield
            with closing(self._in_turn(operation, make_ready)) as work:
                go_on = polled(work)
                while (reply := go_on()) is None:
                    if state.withdrawals.has(operation):
                        return self._withdrawn(operation)
                    yield
                return reply
        except Exception as error:
            self.session.failed()
            # Requests may be waiting for these weights, and no forward pass would ever find out.
            if self._is_lost(error):
                state.fail_all(f"The weights cannot be updated: {describe_error(error)}")
            raise
        finally:
            state.staged.forget(operation.id)

    def _in_turn(
        self, operation: UpdateWeights, make_ready: Callable[[], Generator[None, None, Ready]]
    ) -> Generator[None, None, Reply]:
        """Stage and write. Before it writes it may be closed, and nothing has changed."""
        state = self.store.state
        with self.turn(operation.id) as mine:
            while not mine():
                yield
            try:
                ready = yield from make_ready()
            except DeviceKitError:
                raise
            except Exception as error:
                if self._is_lost(error):
                    raise
                return self._not_staged(operation, error)
            with closing(ready):
                state.gate.close(operation.id)  # `Control` opens it again when this is answered
                state.staged.note(operation.id)
                while state.staged.held_back(operation.id) or not _exclusive(state):
                    yield
                return self._apply(operation, ready)

    @contextmanager
    def turn(self, operation_id: str) -> Iterator[Callable[[], bool]]:
        """A block around one update's turn. Gives a function that tells whether it is its turn yet."""
        try:
            yield lambda: self.store.take_turn(operation_id)
        finally:
            self.store.end_turn(operation_id)

    def received(self, take: Callable[[], Staged | None]) -> Generator[None, None, Staged]:
        """Call ``take`` in each step until every rank has a result. Raises on all ranks if it failed on any."""
        staged: Staged | None = None
        ready = False
        try:
            while True:
                failure: Exception | None = None
                try:
                    self.store.require_mapped()
                    staged = take() if staged is None else staged
                except Exception as error:
                    failure = error
                ready = self.store.state.coordinator.ready(staged is not None, failure)
                if ready and staged is not None:
                    return staged
                yield
        finally:
            if staged is not None and not ready:
                staged.close()

    def ready(self, load: Load) -> Generator[None, None, Ready]:
        """Stage on every rank, while requests go on, and keep the old values. Raises on all if it fails on any."""
        store = self.store
        store.require_mapped()
        small = sum(one.nbytes for one in store.tensors(Selector.ALL).values()) < store.stage_beside
        beside = not (small or self.session.open)

        def work() -> Ready:
            with store.device.current_where_possible():
                where = Staging.BESIDE if beside else Staging.BETWEEN
                ready = Ready(load(), OldValues(store.rollback_bytes), where)
                try:
                    self._keep(ready)
                    if beside:  # what was begun in this thread is over before another one reads it
                        store.device.synchronize()
                except Exception:
                    ready.close()
                    raise
                return ready

        task, ready = Task(work, Ready.close, beside=beside), False
        try:
            while not store.state.coordinator.least(task.done):
                yield
            store.state.coordinator.ready(True, task.error)
            ready = True
            return task.result
        finally:
            if not ready:
                task.abandon()

    def _keep(self, ready: Ready) -> None:
        """Keep the old values, unless those that will be written over are kept already."""
        now = self.weights_now
        if not ready.old.are_of(now):
            weights = self.store.tensors(Selector.ALL)
            ready.old.keep([weights[name] for name in ready.staged.names], now)

    @property
    def weights_now(self) -> tuple[int, int]:
        """A value that differs after a weight has changed, or the weights' memory was released."""
        return self.store.state.requests.weights_epoch, self.store.mappings

    def _write(self, ready: Ready) -> Loaded:
        """Write on every rank; raises `RolledBack` or `PartlyWritten` on all if it failed on any."""
        staged, old, ranks = ready.staged, ready.old, self.store.state.coordinator
        names = staged.names

        def write() -> Loaded:
            try:
                self._keep(ready)
                return staged.write()
            finally:
                staged.close()

        try:
            return run_on_all_ranks(ranks, write)
        except Exception as error:
            try:
                run_on_all_ranks(ranks, old.put_back)
            except Exception as failure:
                _log.warning("a half-written weight update could not be taken back: %s", failure)
                if isinstance(error, PartlyWritten):
                    raise error from failure
                raise PartlyWritten(names, error) from failure
            raise RolledBack(error) from error

    def _apply(self, operation: UpdateWeights, ready: Ready) -> UpdateReply:
        state = self.store.state
        began, late = state.clock.now(), not ready.old.are_of(self.weights_now)
        reply = self._written(operation, ready)
        rollback = Rollback.KEPT_LATE if late else Rollback.KEPT
        reply = replace(
            reply,
            staging=ready.staging,
            rollback=rollback if ready.old.kept else Rollback.NONE,
            write_seconds=state.clock.now() - began,
        )
        if reply.success:
            reply = clean_up(state, operation, reply)
            self.session.updated(reply)
        return reply

    def _written(self, operation: UpdateWeights, ready: Ready) -> UpdateReply:
        state = self.store.state
        try:
            loaded = self._write(ready)
        except RolledBack as error:
            self.session.failed()
            return UpdateReply(operation.id, False, str(error), refusal=Refusal.FAILED)
        except PartlyWritten as error:
            return self._partly_written(operation, error)
        version = self._version(operation)
        state.requests.weights_changed(version)
        self.store.trust(loaded.names)
        loaded.settle()  # last: the weights are new, whatever comes of it
        return UpdateReply(
            operation.id,
            True,
            f"Weights updated to version {shown(version)}.",
            outcome=UpdateOutcome.UPDATED,
            tensors=len(loaded.names),
            bytes=loaded.bytes,
            weight_version=version,
        )

    def _withdrawn(self, operation: UpdateWeights) -> UpdateReply:
        state = self.store.state
        blockers = state.blockers()
        waited = describe(blockers) if blockers else "the new weights"
        return UpdateReply(
            operation.id,
            False,
            f"Withdrawn while it waited for: {waited}. No weight was changed.",
            blockers,
            refusal=Refusal.WITHDRAWN,
            weight_version=state.weight_version,
        )

    def _is_lost(self, error: Exception) -> bool:
        return self.store.device.classify_error(error) is ErrorKind.DEVICE_LOST

    def _not_staged(self, operation: UpdateWeights, error: Exception) -> UpdateReply:
        _log.warning("%s %s failed", type(operation).__name__, operation.id, exc_info=error)
        self.session.failed()
        return UpdateReply(
            operation.id,
            False,
            f"The update failed before anything was written: {type(error).__name__}: {error}",
            refusal=Refusal.FAILED,
            weight_version=self.store.state.weight_version,
        )

    def _partly_written(self, operation: UpdateWeights, error: PartlyWritten) -> UpdateReply:
        state = self.store.state
        version = self._version(operation)
        state.requests.weights_changed(version)
        self.store.distrust(error.names)
        self.session.failed(partial=True)
        return UpdateReply(
            operation.id,
            False,
            f"Writing failed half-way ({error}). {len(error.names)} weights have no known value now: generation "
            "waits until they are updated again.",
            refusal=Refusal.FAILED,
            outcome=UpdateOutcome.PARTIAL,
            weight_version=version,
        )

    def _version(self, operation: UpdateWeights) -> str:
        return (
            operation.weight_version or self.session.version or _next_version(self.store.state.weight_version)
        )


def _exclusive(state: SchedulerState) -> bool:
    return state.gate.paused or bool(state.gate.holds) or not state.requests.holding_kv


def clean_up(state: SchedulerState, operation: UpdateWeights, done: UpdateReply) -> UpdateReply:
    """Flush and empty as the operation says, after its weights are written.

    Admission is still closed, so requests that wait for this very update do not prevent the flush.
    """
    if not operation.flush_cache:
        release = state.releases.attempt(ReleasePoint.WEIGHT_UPDATE, operation.empty_cache)
        return replace(done, message=emptied(done.message, release), release=release)
    # One empty is enough: the flush leaves it to the update's own release point.
    flushed = flush_now(state, operation.id, empty_cache=False)
    release = state.releases.attempt(ReleasePoint.WEIGHT_UPDATE, operation.empty_cache)
    if flushed.success:
        return replace(done, message=emptied(done.message, release), release=release, flush=flushed)
    message = f"The weights were updated to version {shown(done.weight_version)}, but "
    if flushed.blockers:
        message += f"the cache was not flushed: {describe(flushed.blockers)}. "
        message += "Retract or finish these requests, then flush."
    else:
        message += f"not every cache was flushed. {flushed.message}"
    return replace(
        done,
        success=False,
        message=emptied(message, release),
        blockers=flushed.blockers,
        refusal=flushed.refusal,
        release=release,
        outcome=UpdateOutcome.UPDATED_NOT_FLUSHED,
        flush=flushed,
    )


def _next_version(version: str) -> str:
    """A name for weights that came without one: the number in the old name, plus one."""
    stem, separator, number = version.rpartition("+")
    if separator and number.isdigit():
        return f"{stem}+{int(number) + 1}"
    return f"{version}+1"
