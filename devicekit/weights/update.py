"""What every weight update shares: when it may run, what happens to caches, and what its answer says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from devicekit.contract.records import ErrorKind
from devicekit.coordination import run_on_all_ranks
from devicekit.oom import describe as describe_error
from devicekit.release import ReleasePoint
from devicekit.scheduling.messages import (
    Refusal,
    Reply,
    Selector,
    UpdateOutcome,
    UpdateReply,
    UpdateWeights,
    describe,
    emptied,
)
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.flush import flush_now
from devicekit.scheduling.verbs.pause import abort_requests
from devicekit.weights.operations import BeginWeightUpdate
from devicekit.weights.rollback import OldValues, RolledBack
from devicekit.weights.session import UpdateSession
from devicekit.weights.store import Loaded, PartlyWritten, Staged, WeightStore

_log = logging.getLogger(__name__)

Load = Callable[[], Staged | None]


class Updater:
    """Runs weight updates, one at a time, between forward passes."""

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

    def begin(self, operation: UpdateWeights, load: Load) -> Callable[[], Reply | None]:
        """Run a weight update as soon as it may.

        While paused, at once: requests in flight keep their KV and go on with the new weights. Otherwise it
        waits until no request holds KV; new ones stay in the queue meanwhile.

        Args:
            load: brings the new weights and checks them, or answers ``None`` to be asked again in the next step.
                It writes nothing: no rank writes before all have loaded.

        Raises:
            Conflict: the memory of the weights is released.
            InvalidOperation: the selected model does not exist.
        """
        state = self.store.state
        self.store.require_mapped()
        self.store.selected(operation.selector)
        if operation.abort_all_requests:
            abort_requests(state, list(state.requests.values()), "The weights are being updated.")

        def poll() -> Reply | None:
            if not _exclusive(state):
                if state.withdrawals.has(operation):
                    return UpdateReply(
                        operation.id,
                        False,
                        f"Withdrawn while it waited for: {describe(state.blockers())}. No weight was changed.",
                        state.blockers(),
                        refusal=Refusal.WITHDRAWN,
                        weight_version=state.weight_version,
                    )
                return None
            try:
                staged = self.stage(load)
                if staged is None:
                    return None
                reply = self._apply(operation, staged)
            except Exception as error:
                self.session.failed()
                # Requests may be waiting for these weights, and no forward pass would ever find out.
                if self.store.device.classify_error(error) is ErrorKind.DEVICE_LOST:
                    state.fail_all(f"The weights cannot be updated: {describe_error(error)}")
                raise
            return reply

        return poll

    def stage(self, load: Load) -> Staged | None:
        """What to write, once every rank has it; raises on all if it failed on any."""
        staged: Staged | None = None
        failure: Exception | None = None
        try:
            self.store.require_mapped()
            staged = load()
        except Exception as error:
            failure = error
        ready = False
        try:
            ready = self.store.state.coordinator.ready(staged is not None, failure)
        finally:
            if staged is not None and not ready:
                staged.close()
        return staged if ready else None

    def _write(self, staged: Staged) -> Loaded:
        """Write on every rank; raises `RolledBack` or `PartlyWritten` on all if it failed on any."""
        names = staged.names
        ranks = self.store.state.coordinator
        old = OldValues(self.store.rollback_bytes)

        def write() -> Loaded:
            try:
                weights = self.store.tensors(Selector.ALL)
                old.keep([weights[name] for name in names])
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

    def _apply(self, operation: UpdateWeights, staged: Staged) -> UpdateReply:
        state = self.store.state
        try:
            loaded = self._write(staged)
        except RolledBack as error:
            self.session.failed()
            return UpdateReply(operation.id, False, str(error), refusal=Refusal.FAILED)
        except PartlyWritten as error:
            return self._partly_written(operation, error)
        version = self._version(operation)
        state.requests.weights_changed(version)
        self.store.trust(loaded.names)
        loaded.settle()  # last: the weights are new, whatever comes of it
        done = UpdateReply(
            operation.id,
            True,
            f"Weights updated to version {version!r}.",
            outcome=UpdateOutcome.UPDATED,
            tensors=len(loaded.names),
            bytes=loaded.bytes,
            weight_version=version,
        )
        done = clean_up(state, operation, done)
        self.session.updated(done)
        return done

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

    Admission is still closed: requests that wait for this very update do not stand in its way.
    """
    if not operation.flush_cache:
        release = state.releases.attempt(ReleasePoint.WEIGHT_UPDATE, operation.empty_cache)
        return replace(done, message=emptied(done.message, release), release=release)
    # One empty is enough: the flush leaves it to the update's own release point.
    flushed = flush_now(state, operation.id, empty_cache=False)
    release = state.releases.attempt(ReleasePoint.WEIGHT_UPDATE, operation.empty_cache)
    if flushed.success:
        return replace(done, message=emptied(done.message, release), release=release, flush=flushed)
    message = f"The weights were updated to version {done.weight_version!r}, but "
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
    """A name for weights that came without one: the old name's number, counted up."""
    stem, separator, number = version.rpartition("+")
    if separator and number.isdigit():
        return f"{stem}+{int(number) + 1}"
    return f"{version}+1"
