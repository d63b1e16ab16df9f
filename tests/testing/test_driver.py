"""Physical memory: conserved, and never handed out twice."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from devicekit.testing.driver import Holder, PhysicalMemory

OURS, THEIRS = Holder(1, "us"), Holder(2, "them")


def test_what_one_holds_another_cannot_have() -> None:
    memory = PhysicalMemory(100)
    assert memory.take(OURS, 70)
    assert not memory.take(THEIRS, 31)
    assert memory.take(THEIRS, 30)
    assert (memory.free, memory.holders()) == (0, {OURS: 70, THEIRS: 30})


def test_what_is_given_back_is_free_again() -> None:
    memory = PhysicalMemory(100)
    memory.take(OURS, 60)
    memory.give(OURS, 60)
    assert (memory.free, memory.holders()) == (100, {})


def test_nobody_gives_back_more_than_they_hold() -> None:
    memory = PhysicalMemory(100)
    memory.take(THEIRS, 50)
    with pytest.raises(ValueError, match="cannot give"):
        memory.give(OURS, 1)
    assert memory.free == 50


def test_a_driver_that_counts_late_shows_what_was_taken_and_given_back_a_while_later() -> None:
    minutes = PhysicalMemory(1000, late=60.0)
    assert minutes.take(OURS, 400)
    assert (minutes.free, minutes.counted) == (600, 1000)
    moments = PhysicalMemory(1000, late=0.05)
    assert moments.take(OURS, 400)
    _wait_for(lambda: moments.counted == 600)
    moments.give(OURS, 400)
    _wait_for(lambda: moments.counted == 1000)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
