"""Physical memory: conserved, and never handed out twice."""

from __future__ import annotations

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
