"""Of an operation that ranks do with different outcomes, each rank gives the one answer that all give."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from devicekit.clock import SystemClock
from devicekit.coordination import SingleRank
from devicekit.scheduling.gate import AdmissionGate
from devicekit.scheduling.messages import Operation, Refusal, Reply
from devicekit.scheduling.verbs.control import Control
from devicekit.scheduling.withdrawals import Withdrawals
from tests.seeds import drawn_seed

_T = TypeVar("_T")
_SEED = drawn_seed("DEVICEKIT_TEST_AGREEMENT_SEED")


class _Together:
    """What ranks in threads tell each other."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=30)
        self._told: list[Any] = [None] * count

    def exchange(self, rank: int, value: _T) -> list[_T]:
        self._told[rank] = value
        self._barrier.wait()
        told = [*self._told]
        self._barrier.wait()
        return told


class _Rank(SingleRank):
    """One of them."""

    def __init__(self, together: _Together, rank: int) -> None:
        self._together, self._rank = together, rank

    def outcomes(self, what: str, own: int) -> list[int]:
        return self._together.exchange(self._rank, own)

    def texts(self, text: str) -> list[str]:
        return self._together.exchange(self._rank, text)


@dataclass(frozen=True, slots=True)
class _Work(Operation):
    """Something that every rank does."""


@dataclass(frozen=True)
class _Fate:
    """How one rank fares: after so many polls, done or refused."""

    polls: int
    refusal: Refusal | None
    text: str

    def handler(self) -> Callable[[_Work], Reply | Callable[[], Reply | None]]:
        reply = Reply("work", self.refusal is None, self.text, refusal=self.refusal)
        left = iter(range(self.polls))
        return lambda work: (
            reply if not self.polls else lambda: None if next(left, None) is not None else reply
        )


def _answers(fates: list[_Fate]) -> list[tuple[int, Reply]]:
    """By rank: at which poll the answer came, and the answer."""
    together = _Together(len(fates))

    def run(rank: int) -> tuple[int, Reply]:
        state: Any = SimpleNamespace(
            coordinator=_Rank(together, rank),
            gate=AdmissionGate(),
            clock=SystemClock(),
            withdrawals=Withdrawals(),
        )
        control = Control(state)
        control.register(_Work, fates[rank].handler())
        control.submit(_Work("work"))
        polls = 0
        while not (replies := control.take_replies()):
            polls += 1
            control.answer()
        assert not control.pending
        [reply] = replies
        return polls, reply

    with ThreadPoolExecutor(len(fates)) as ranks:
        return [*ranks.map(run, range(len(fates)))]


@pytest.mark.parametrize("case", range(60))
def test_all_ranks_give_one_answer_at_one_time(case: int) -> None:
    rng = random.Random(f"{_SEED} {case}")
    kinds = [None, *rng.sample([*Refusal], rng.randrange(1, 4))]

    def fate(polls: int, kind: Refusal | None) -> _Fate:
        return _Fate(polls, kind, "" if kind is None else f"{kind.value} here")

    fates = [fate(rng.choice((0, 0, 1, 3)), rng.choice(kinds)) for _ in range(rng.randrange(1, 5))]
    answers = _answers(fates)
    failing = [(rank, one) for rank, one in enumerate(fates) if one.refusal is not None]
    assert len({polls for polls, _ in answers}) == 1, (_SEED, case, fates, answers)
    for rank, (polls, reply) in enumerate(answers):
        told = (_SEED, case, fates, reply)
        assert reply.success == (not failing), told
        if not failing:
            assert polls >= max(one.polls for one in fates), told
            continue
        # Whoever fails first is told at once; who would fail later does not come to it.
        first = min(one.polls for _, one in failing)
        known = {at: one for at, one in failing if one.polls <= polls}
        assert polls <= first + 2, told
        assert reply.refusal == known[min(known)].refusal, told
        assert all(one.text in reply.message for one in known.values()), told
        if len(fates) > 1 and len({one.text for one in fates}) > 1:
            assert all(f"{at}" in reply.message for at in known), told
        assert reply.id == "work", rank
