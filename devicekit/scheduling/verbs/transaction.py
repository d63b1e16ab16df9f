"""A transaction: one call that settles requests, updates the weights, flushes, empties and goes on.

New weights are brought and checked before the requests are settled, where they can be. Each step's answer is
kept. When one fails, nothing after it is done, and what is left behind is defined: as long as no weight was
written generation goes on as it did before, and once one was it stays paused, for somebody to decide.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from devicekit.scheduling.errors import Conflict
from devicekit.scheduling.messages import (
    Continue,
    Drain,
    Flush,
    Operation,
    Pause,
    PauseMode,
    Refusal,
    Reply,
    UpdateOutcome,
    UpdateReply,
    UpdateWeights,
    emptied,
)
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.awaiting import awaited, polled
from devicekit.scheduling.verbs.flush import check_timeout

Poll = Callable[[], "Reply | None"]
Begin = Callable[[Operation], "Reply | Poll"]


class Settle(str, enum.Enum):
    """What becomes of the requests in flight."""

    DRAIN = "drain"  # they run to their end
    RETRACT = "retract"  # they start over from their tokens, with the new weights
    ABORT = "abort"
    IN_PLACE = "in_place"  # they go on where they are, on keys of the old weights; cannot be flushed


@dataclass(frozen=True, slots=True)
class Transaction(Operation):
    """Settle, update, flush, empty, continue. ``update``'s own wishes for flushing and emptying are ignored."""

    settle: Settle = Settle.RETRACT
    update: UpdateWeights | None = None
    flush: bool = True
    empty_cache: bool | None = None  # None: as the release point's policy says
    resume: bool = True  # False: stay paused
    timeout: float | None = None  # seconds, for draining and for the flush


@dataclass(frozen=True, slots=True)
class TransactionStep:
    """One step and its answer."""

    name: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class TransactionReply(Reply):
    """The answer to `Transaction`."""

    steps: tuple[TransactionStep, ...] = ()
    failed: str | None = None  # the step that failed
    outcome: UpdateOutcome = UpdateOutcome.UNCHANGED  # what became of the weights
    paused: bool = False  # how it left the engine


class TransactionHandler:
    """Answers `Transaction`, one at a time."""

    def __init__(self, state: SchedulerState, begin: Begin) -> None:
        self._state = state
        self._begin = begin
        self._busy = False

    def __call__(self, operation: Transaction) -> Callable[[], Reply | None]:
        check_timeout("transaction", operation.timeout)
        if self._busy:
            raise Conflict("Another transaction is in progress.")
        self._busy = True
        return polled(self._run(operation))

    def _run(self, operation: Transaction) -> Generator[None, None, Reply]:
        try:
            return (yield from _Run(self._state, self._begin, operation).run())
        finally:
            self._busy = False


class _Run:
    """One transaction under way."""

    def __init__(self, state: SchedulerState, begin: Begin, operation: Transaction) -> None:
        self._state = state
        self._begin = begin
        self._operation = operation
        self._steps: list[TransactionStep] = []
        self._was_paused = state.paused
        self._outcome = UpdateOutcome.UNCHANGED

    def run(self) -> Generator[None, None, TransactionReply]:
        """Do every step; stops where it has to wait."""
        operation, identity = self._operation, self._operation.id
        flush = Flush(f"{identity}/flush", operation.timeout, operation.empty_cache)
        go_on = Continue(f"{identity}/continue", False if operation.flush else operation.empty_cache)
        update = operation.update
        if update is not None:
            update = replace(update, id=f"{identity}/update", flush_cache=False, empty_cache=False)
        plan: list[tuple[str, Operation | None]] = [
            (operation.settle.value, self._settle()),
            ("update", update),
            ("flush", flush if operation.flush else None),
            ("continue", go_on if operation.resume else None),
        ]
        staged: Reply | Poll | None = None
        if update is not None and update.stages:
            staged = yield from self._stage(update)
            if isinstance(staged, Reply) and not staged.success:
                return self._stopped("update", self._note("update", staged))
        for name, step in plan:
            if step is None:
                continue
            reply = yield from self._attempt(name, step, staged if step is update else None)
            if not reply.success:
                if update is not None and staged is not None and name == operation.settle.value:
                    yield from self._give_up(update, staged)
                return self._stopped(name, reply)
        return self._reply(True, "Transaction complete.")

    def _stage(self, update: UpdateWeights) -> Generator[None, None, Reply | Poll]:
        """Begin the update before anything is settled, and wait until it only has to be written, or is refused."""
        staged = self._state.staged
        staged.hold_back(update.id)
        answer = self._begin(update)
        while not isinstance(answer, Reply):
            reply = answer()
            if staged.at_hand(update.id):
                return answer
            if reply is None:
                yield
            else:
                answer = reply
        staged.let_go(update.id)
        return answer

    def _give_up(self, update: UpdateWeights, staged: Reply | Poll) -> Generator[None, None, None]:
        """Have an update that is held back forget what it staged: settling has failed."""
        self._state.withdrawals.add(update.id)
        yield from awaited(staged)
        self._state.withdrawals.forget(update.id)
        self._state.staged.let_go(update.id)

    def _settle(self) -> Operation:
        operation = self._operation
        if operation.settle is Settle.DRAIN:
            return Drain(f"{operation.id}/drain", operation.timeout)
        return Pause(f"{operation.id}/pause", PauseMode(operation.settle.value))

    def _attempt(
        self, name: str, step: Operation, begun: Reply | Poll | None
    ) -> Generator[None, None, Reply]:
        clock = self._state.clock
        started = clock.now()
        self._state.staged.let_go(step.id)
        reply = yield from awaited(self._begin(step) if begun is None else begun)
        return self._note(name, replace(reply, seconds=clock.now() - started))

    def _note(self, name: str, reply: Reply) -> Reply:
        self._steps.append(TransactionStep(name, reply))
        if isinstance(reply, UpdateReply):
            self._outcome = reply.outcome
            if reply.outcome is UpdateOutcome.UPDATED and self._operation.flush:
                self._outcome = UpdateOutcome.UPDATED_NOT_FLUSHED
        elif self._outcome is UpdateOutcome.UPDATED_NOT_FLUSHED and name == "flush":
            self._outcome = UpdateOutcome.UPDATED if reply.success else self._outcome
        return reply

    def _stopped(self, name: str, reply: Reply) -> TransactionReply:
        untouched = self._outcome is UpdateOutcome.UNCHANGED
        if untouched and not self._was_paused and self._state.paused and name != "continue":
            # As it was before, and without the price of emptying for nothing.
            undo = self._begin(Continue(f"{self._operation.id}/undo", False))
            if isinstance(undo, Reply):
                self._steps.append(TransactionStep("undo", undo))
        return replace(
            self._reply(False, f"Stopped at {name}: {reply.message}"),
            failed=name,
            blockers=reply.blockers,
            refusal=reply.refusal or Refusal.FAILED,
        )

    def _reply(self, success: bool, message: str) -> TransactionReply:
        # The last that did something or failed.
        releases = [one.reply.release for one in self._steps if one.reply.release is not None]
        release = next((one for one in reversed(releases) if one.emptied or one.error), None)
        return TransactionReply(
            self._operation.id,
            success,
            message if release is None else emptied(message, release),
            release=release,
            steps=tuple(self._steps),
            outcome=self._outcome,
            paused=self._state.paused,
        )
