"""Control operations on several ranks: one answer for all, and a failure on any rank is a failure on all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from zlib import crc32

import numpy as np

from devicekit.scheduling.errors import InvalidOperation, RankLost, describe_failures
from devicekit.scheduling.messages import Operation, Refusal, Reply
from devicekit.scheduling.ranks.group import Question, RankGroup
from devicekit.scheduling.state import SchedulerState
from devicekit.scheduling.verbs.control import Control

Poll = Callable[[], Reply | None]

_WAITING, _DONE, _FAILED = 0, 1, 2  # and above: failed, with a kind of refusal
_REFUSALS = list(Refusal)


class RankedControl(Control):
    """The control operations of one rank among others.

    An operation succeeds when it has on every rank, and fails as soon as it has on any; the message then says
    where and why. A handler that changes anything irrevocable asks `SchedulerState.ranks` before it does.
    """

    def __init__(self, state: SchedulerState, ranks: RankGroup) -> None:
        self._ranks = ranks
        super().__init__(state)

    def begin(self, operation: Operation) -> Reply | Poll:
        """Begin an operation that rank 0 has handed out. Never raises for what is wrong with it.

        Raises:
            InvalidOperation: it was not handed out: only this rank knows of it.
        """
        if (lost := self._ranks.lost) is not None:
            return Reply(operation.id, False, str(lost), refusal=Refusal.FAILED)
        if not self._ranks.in_step:
            raise InvalidOperation("With several ranks, operations are posted on rank 0.")
        begun = super().begin(operation)
        own = begun if isinstance(begun, Reply) else None
        agreed = self._agree(operation, own)
        if agreed is not None:
            return agreed

        def poll() -> Reply | None:
            nonlocal own
            if own is None and not isinstance(begun, Reply) and self._ranks.lost is None:
                own = begun()
            return self._agree(operation, own)

        return poll

    def _agree(self, operation: Operation, own: Reply | None) -> Reply | None:
        """What all ranks answer, given what this one would; ``None``: not yet."""
        try:
            states = self._ranks.ask(Question.ANSWER, _state_of(own), digest=crc32(operation.id.encode()))
            states = states[:, 0].copy()
            if states.max() < _FAILED:
                return None if states.min() == _WAITING else own
            texts = self._ranks.texts("" if own is None or own.success else own.message)
        except RankLost as lost:
            self._state.closed_by.discard(operation.id)
            return _failed(operation, own, str(lost), Refusal.FAILED)
        self._state.closed_by.discard(operation.id)
        failures = {int(rank): texts[rank] for rank in np.flatnonzero(states >= _FAILED)}
        if len(failures) == len(states) and len(set(failures.values())) == 1:
            return own
        code = int(states[min(failures)]) - _FAILED
        return _failed(operation, own, describe_failures(failures), _REFUSALS[code] if code >= 0 else None)


def _state_of(reply: Reply | None) -> int:
    if reply is None:
        return _WAITING
    if reply.success:
        return _DONE
    return _FAILED + _REFUSALS.index(reply.refusal or Refusal.FAILED)


def _failed(operation: Operation, own: Reply | None, message: str, refusal: Refusal | None) -> Reply:
    reply = own or Reply(operation.id, False)
    return dataclasses.replace(reply, success=False, message=message, refusal=refusal)
