"""A rank that ends, hangs or fails in mid-verb: the others say which, answer everything, and stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from devicekit.scheduling.messages import Flush
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.ranks.table import Question
from devicekit.weights.operations import UpdateWeightsFromTensor
from tests.hash_runner import make_weights
from tests.scheduling.processes import World, Worlds, new_world
from tests.scheduling.ranked_world import HEARTBEAT, Rank, Record, make_rank
from tests.scheduling.test_ranks import every_verb

A, B = list(range(1, 20)), list(range(100, 130))


@pytest.fixture
def three(worlds: Worlds) -> World:
    return worlds(3)


def count_questions(group: RankGroup, at: int, act: object) -> list[Question]:
    """Have a rank do something instead of asking its ``at``-th question; those that it asked."""
    ask, asked = group.ask, []

    def asking(question: Question, *values: int, **more: object) -> object:
        asked.append(question)
        if len(asked) == at:
            act()  # type: ignore[operator]
        return ask(question, *values, **more)  # type: ignore[arg-type]

    group.ask = asking  # type: ignore[method-assign, assignment]
    return asked


class Boom(Exception):
    """What goes wrong."""


def fail() -> None:
    raise Boom("in the middle")


def guarded(rank: Rank) -> Record:
    """Play every verb and keep the record, however it ends."""

    def script(rank: Rank) -> None:
        rank.scheduler.post(Flush("pending", timeout=1000.0))
        try:
            every_verb(rank)
        except AssertionError:
            assert rank.group.lost is not None

    with suppress(Boom):
        rank.play(script)
    return rank.record


def failing_at(at: int, who: int) -> Record:
    rank = make_rank()
    if rank.number == who:
        rank.record.notes["asked"] = count_questions(rank.group, at, fail)
    return guarded(rank)


def check_survivors(records: list[Record], lost: int, *words: str) -> None:
    for record in records:
        assert record.lost is not None, "it noticed nothing"
        message, ranks = record.lost
        assert ranks == (lost,), message
        assert any(one in message for one in words), message
        assert not record.twice
        assert record.balanced
        assert set(record.posted) <= record.finishes.keys() | record.replies.keys(), "no answer"
        assert record.finishes.keys() >= record.tokens.keys(), "a request did not end"
        pending = record.replies.get("pending")
        assert pending is None or pending.success or f"ank {lost}" in pending.message


@pytest.fixture(scope="module")
def questions(worlds: Worlds) -> list[Question]:
    """What every rank asks while every verb is played."""
    asked = worlds(3).play(failing_at, 100000, 1)[1].notes["asked"]
    assert isinstance(asked, list)
    return asked


def test_the_script_has_every_kind_of_question(questions: list[Question]) -> None:
    wanted = {Question.STEP, Question.PASS, Question.ANSWER, Question.READY, Question.TEXT}
    assert set(questions) >= wanted
    assert len(questions) < 250, "the test below would take long"


@pytest.mark.parametrize("part", range(4))
def test_a_rank_that_fails_anywhere_in_any_verb_is_named_by_the_others(
    worlds: Worlds, questions: list[Question], part: int
) -> None:
    assert questions[-1] is Question.END  # after which nobody waits for anybody
    world = worlds(3 if part == 0 else 2)
    for at in range(1 + part, len(questions), 4):
        records = world.play(failing_at, at, 1)
        words = ("it gave up: Boom: in the middle", "Rank 1 went another way")
        check_survivors([records[0], *records[2:]], 1, *words)


def test_rank_0_failing_is_named_by_the_others(three: World, questions: list[Question]) -> None:
    for at in range(3, len(questions), 17):
        records = three.play(failing_at, at, 0)
        for record in records[1:]:
            assert record.lost is not None
            assert not record.twice
            assert record.balanced
            assert record.finishes.keys() >= record.tokens.keys()


# -- Processes that end or stand still ------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stand_still() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def ending_at(at: int, who: int, how: str, timeout: float) -> Record:
    rank = make_rank(timeout=timeout)
    if rank.number == who:
        count_questions(rank.group, at, {"die": die, "stand_still": stand_still}[how])
    return guarded(rank)


@pytest.mark.parametrize("at", [3, 11, 24, 40, 58])
def test_a_rank_that_is_killed_in_the_middle_of_a_verb_is_named(at: int) -> None:
    with new_world(3) as world:
        records = world.play(ending_at, at, 1, "die", 30.0, expect="1")
        check_survivors(records, 1, "its process has ended or stands still")
        assert all(record.seconds < 20 for record in records), "noticed by the timeout, not by its end"


def test_a_rank_that_stands_still_is_named_when_its_time_is_up() -> None:
    with new_world(3) as world:
        records = world.play(ending_at, 20, 2, "stand_still", 2.0, expect="2")
        check_survivors(records, 2, "its process has ended or stands still")
        assert all(record.seconds < 20 for record in records)


def test_when_rank_0_is_killed_the_others_end() -> None:
    with new_world(3) as world:
        records = world.play(ending_at, 20, 0, "die", 30.0, expect="0")
        check_survivors(records, 0, "its process has ended or stands still")


def late(seconds: float) -> Record:
    rank = make_rank(timeout=0.7)
    if rank.number == 1:
        count_questions(rank.group, 12, lambda: threading.Event().wait(seconds))
    return guarded(rank)


def test_a_rank_that_is_too_slow_is_given_up_and_hears_so(three: World) -> None:
    records = three.play(late, 2.5)
    check_survivors(records, 1, "it is alive, and did not come within 0.7 s")
    assert all(record.seconds < 15 for record in records)


# -- Idle -----------------------------------------------------------------------------------------------------


def idle(seconds: float) -> Record:
    rank = make_rank()

    def script(rank: Rank) -> None:
        rank.request("r", A, 3)
        rank.run("r")
        began, steps = time.monotonic(), rank.record.steps
        while time.monotonic() - began < seconds:
            rank.scheduler.step()
            rank.scheduler.wait(100.0)
        rank.record.notes["steps"] = rank.record.steps - steps

    used = time.process_time()
    record = rank.play(script)
    record.notes["cpu"] = time.process_time() - used
    return record


def test_idle_ranks_sleep_and_meet_at_every_heartbeat(three: World) -> None:
    records = three.play(idle, 1.0)
    steps = records[0].notes["steps"]
    assert isinstance(steps, int)
    assert 3 <= steps <= 1.0 / HEARTBEAT + 2
    assert all(float(str(record.notes["cpu"])) < 0.5 for record in records)


def test_updates_survive_a_rank_that_comes_and_goes(three: World) -> None:
    """A lost group is lost for good; the same processes form a new one."""
    three.play(failing_at, 9, 1)
    again = three.play(short_life)
    assert [record.lost for record in again] == [None] * 3
    assert all(record.replies["u"].success for record in again)


def short_life() -> Record:
    rank = make_rank()
    return rank.play(
        lambda rank: rank.record.notes.update(
            reply=rank.do(UpdateWeightsFromTensor("u", tensors=make_weights(3)))
        )
    )
