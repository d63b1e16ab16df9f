"""Answers control operations, each exactly once: at once where it can, and otherwise as soon as it can.

A handler takes an operation and returns its reply, or a function that is asked again in every step until it
returns one. What a handler knows of the scheduler is `SchedulerState`; handlers for further operations are
registered by the packages that define them.

Between ranks an operation succeeds when it has on every rank, and fails as soon as it has on any; the message then
says where and why. A handler that changes anything irrevocable asks the coordinator before it does.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from devicekit.contract.errors import DeviceKitError, UnsupportedHook
from devicekit.contract.text import shown
from devicekit.field_types import declarations, type_problems
from devicekit.scheduling.errors import Conflict, InvalidOperation, RankLost, describe_failures
from devicekit.scheduling.messages import (
    Abort,
    Continue,
    Drain,
    Flush,
    Operation,
    Pause,
    Refusal,
    Reply,
    Withdraw,
)
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.drain import drain
from devicekit.scheduling.verbs.flush import FlushHandler
from devicekit.scheduling.verbs.pause import abort, pause, resume
from devicekit.scheduling.verbs.transaction import Transaction, TransactionHandler

Poll = Callable[[], Reply | None]
_O = TypeVar("_O", bound=Operation)
_A = TypeVar("_A")
_log = logging.getLogger(__name__)
_REFUSALS: Mapping[type[Exception], Refusal] = MappingProxyType(
    {
        InvalidOperation: Refusal.INVALID,
        Conflict: Refusal.CONFLICT,
        UnsupportedHook: Refusal.UNSUPPORTED,
    }
)
_WAITING, _DONE, _FAILED = 0, 1, 2  # what ranks tell each other; and above: failed, with a kind of refusal
_KINDS = list(Refusal)


Listener = Callable[[str, float, bool], None]
"""Called in the scheduler's thread with an operation's name, its seconds, and whether it succeeded."""


@dataclass(slots=True)
class _Pending:
    operation: Operation
    arrived: float
    poll: Poll


class Control:
    """The control operations of one scheduler."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._handlers: dict[type[Operation], Callable[[Operation], Reply | Poll]] = {}
        self._closing: set[type[Operation]] = set()
        self._pending: list[_Pending] = []
        self._replies: list[Reply] = []
        self._listeners: tuple[Listener, ...] = ()
        self.register(Flush, FlushHandler(state))
        self.register(Pause, lambda operation: pause(state, operation))
        self.register(Continue, lambda operation: resume(state, operation))
        self.register(Abort, lambda operation: abort(state, operation))
        self.register(Drain, lambda operation: drain(state, operation), closes_admission=True)
        self.register(Withdraw, self._withdraw)
        self.register(Transaction, TransactionHandler(state, self.begin))

    def register(
        self, kind: type[_O], handler: Callable[[_O], Reply | Poll], *, closes_admission: bool = False
    ) -> None:
        """Have ``handler`` answer operations of exactly this type.

        Args:
            closes_admission: no waiting request starts from when such an operation begins until it is answered.
        """
        declarations(kind)  # read now, and not within the step that gets the first one
        self._handlers[kind] = handler  # type: ignore[assignment]  # looked up by the operation's own type
        self._closing.discard(kind)
        if closes_admission:
            self._closing.add(kind)

    def submit(self, operation: Operation) -> None:
        """Take an operation in. An unknown one is refused."""
        arrived = self._state.clock.now()
        answer = self.begin(operation)
        if isinstance(answer, Reply):
            self._reply(operation, answer, arrived)
        else:
            self._pending.append(_Pending(operation, arrived, answer))

    def begin(self, operation: Operation) -> Reply | Poll:
        """Begin an operation for a caller that looks after its answer itself. Never raises for what is wrong
        with it.

        Raises:
            InvalidOperation: other ranks do not know of it.
        """
        coordinator, gate = self._state.coordinator, self._state.gate
        if (lost := coordinator.lost) is not None:
            return Reply(operation.id, False, str(lost), refusal=Refusal.FAILED)
        coordinator.admit()
        closes = type(operation) in self._closing
        if closes:
            gate.close(operation.id)
        begun = self._begin(operation)
        own = begun if isinstance(begun, Reply) else None

        def agree() -> Reply | None:
            reply = self._agree(operation, own)
            if reply is not None:
                gate.open(operation.id)  # a handler may have closed it itself
            return reply

        def poll() -> Reply | None:
            nonlocal own
            if own is None and not isinstance(begun, Reply) and coordinator.lost is None:
                own = begun()
            return agree()

        return agree() or poll

    def _begin(self, operation: Operation) -> Reply | Poll:
        handler = self._handlers.get(type(operation))
        if handler is None:
            known = ", ".join(sorted(kind.__name__ for kind in self._handlers))
            message = f"This engine has no operation {type(operation).__name__} (it has {known})."
            return Reply(operation.id, False, message, refusal=Refusal.UNSUPPORTED)
        if wrong := type_problems(operation):
            message = f"{type(operation).__name__} makes no sense as it stands: {'; '.join(wrong)}."
            return Reply(operation.id, False, message, refusal=Refusal.INVALID)
        answer = _guarded(operation, lambda: handler(operation))
        if isinstance(answer, Reply):
            return answer
        return lambda: _guarded(operation, answer)

    def _agree(self, operation: Operation, own: Reply | None) -> Reply | None:
        """What all ranks answer, given what this one would; ``None``: not yet."""
        coordinator = self._state.coordinator
        try:
            states = coordinator.outcomes(operation.id, _state_of(own))
            if max(states) < _FAILED:
                return None if _WAITING in states else own
            texts = coordinator.texts("" if own is None or own.success else own.message)
        except RankLost as lost:
            return _failed(operation, own, str(lost), Refusal.FAILED)
        failures = {rank: texts[rank] for rank, state in enumerate(states) if state >= _FAILED}
        if len(failures) == len(states) and len(set(failures.values())) == 1:
            return own
        return _failed(operation, own, describe_failures(failures), _KINDS[states[min(failures)] - _FAILED])

    def answer(self) -> None:
        """Ask every pending operation again, in order of arrival."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        for one in pending:
            reply = one.poll()
            if reply is None:
                self._pending.append(one)
            else:
                self._reply(one.operation, reply, one.arrived)

    def watch(self, listener: Listener) -> None:
        """Tell ``listener`` of every operation that is answered. One that raises is removed."""
        self._listeners = (*self._listeners, listener)

    def unwatch(self, listener: Listener) -> None:
        """Stop telling ``listener``."""
        self._listeners = tuple(one for one in self._listeners if one != listener)

    def _withdraw(self, operation: Withdraw) -> Reply:
        if all(one.operation.id != operation.operation_id for one in self._pending):
            raise Conflict(f"No operation {shown(operation.operation_id)} waits for an answer.")
        self._state.withdrawals.add(operation.operation_id)
        return Reply(operation.id, True, "It is answered as soon as it may be.")

    def _reply(self, operation: Operation, reply: Reply, arrived: float) -> None:
        self._state.withdrawals.forget(operation.id)
        seconds = self._state.clock.now() - arrived
        self._replies.append(dataclasses.replace(reply, seconds=seconds))
        for listener in self._listeners:
            try:
                listener(type(operation).__name__, seconds, reply.success)
            except Exception:  # whoever looks on must not end the loop that serves everybody
                _log.exception("%r watches no more", listener)
                self.unwatch(listener)

    def take_replies(self) -> tuple[Reply, ...]:
        """Answers since the last call."""
        if not self._replies:
            return ()
        replies, self._replies = tuple(self._replies), []
        return replies

    @property
    def pending(self) -> tuple[Operation, ...]:
        """Operations that wait for an answer."""
        return tuple(one.operation for one in self._pending)


def _state_of(reply: Reply | None) -> int:
    if reply is None:
        return _WAITING
    return _DONE if reply.success else _FAILED + _KINDS.index(reply.refusal or Refusal.FAILED)


def _failed(operation: Operation, own: Reply | None, message: str, refusal: Refusal) -> Reply:
    reply = own or Reply(operation.id, False)
    return dataclasses.replace(reply, success=False, message=message, refusal=refusal)


def _guarded(operation: Operation, ask: Callable[[], _A]) -> _A | Reply:
    """What ``ask`` answers, or the refusal that its error amounts to."""
    try:
        return ask()
    except DeviceKitError as error:
        kind = next((kind for family, kind in _REFUSALS.items() if isinstance(error, family)), Refusal.FAILED)
        return Reply(operation.id, False, str(error), refusal=kind)
    except Exception as error:  # an operator's mistake must not end the loop that serves everybody else
        _log.exception("%s %s failed", type(operation).__name__, operation.id)
        message = f"{type(operation).__name__} failed: {type(error).__name__}: {error}"
        return Reply(operation.id, False, message, refusal=Refusal.FAILED)
