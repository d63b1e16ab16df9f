"""Virtual time: it stands still, moves when told, and runs what falls due in order."""

from __future__ import annotations

import threading

import pytest

from devicekit.testing.clock import Clock, ClockStuck, MockClock, SystemClock


def test_time_stands_still_until_it_is_moved() -> None:
    clock = MockClock(start=5.0)
    assert (clock.now(), clock.now()) == (5.0, 5.0)
    clock.advance(2.5)
    assert clock.now() == 7.5


def test_sleep_jumps_to_its_end_at_once() -> None:
    clock = MockClock()
    clock.sleep(3600)
    assert clock.now() == 3600


def test_both_clocks_serve_whoever_takes_a_clock() -> None:
    assert isinstance(MockClock(), Clock)
    assert isinstance(SystemClock(), Clock)
    before = SystemClock().now()
    assert SystemClock().now() >= before


def test_timers_run_in_order_of_time_each_at_its_own() -> None:
    clock = MockClock()
    ran: list[tuple[str, float]] = []
    for name, when in (("late", 3.0), ("early", 1.0), ("early too", 1.0), ("beyond", 9.0)):
        clock.call_at(when, lambda name=name: ran.append((name, clock.now())))
    clock.advance(5)
    assert ran == [("early", 1.0), ("early too", 1.0), ("late", 3.0)]
    assert clock.next_deadline() == 9.0


def test_a_timer_set_by_a_timer_runs_in_the_same_advance() -> None:
    clock = MockClock()
    ran: list[float] = []
    clock.call_at(1.0, lambda: clock.call_at(2.0, lambda: ran.append(clock.now())) and None)
    clock.advance(2)
    assert ran == [2.0]


def test_a_cancelled_timer_never_runs_and_is_no_deadline() -> None:
    clock = MockClock()
    ran: list[int] = []
    clock.call_at(1.0, lambda: ran.append(1)).cancel()
    assert clock.next_deadline() is None
    clock.advance(2)
    assert ran == []


def test_jump_goes_from_deadline_to_deadline() -> None:
    clock = MockClock()
    clock.call_at(4.0, lambda: None)
    assert clock.jump()
    assert clock.now() == 4.0
    assert not clock.jump()
    assert clock.now() == 4.0


def test_without_autojump_a_sleeper_waits_for_another_thread() -> None:
    clock = MockClock(autojump=False)
    woke: list[float] = []
    sleeper = threading.Thread(target=lambda: (clock.sleep(10), woke.append(clock.now())))
    sleeper.start()
    clock.advance(4)
    assert sleeper.is_alive()
    assert woke == []
    clock.advance(6)
    sleeper.join(timeout=5)
    assert woke == [10.0]


def test_a_sleep_that_nobody_ends_raises_instead_of_hanging() -> None:
    with pytest.raises(ClockStuck, match="advance"):
        MockClock(autojump=False, patience=0.01).sleep(1)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_time_never_moves_back(seconds: float) -> None:
    with pytest.raises(ValueError, match="forward"):
        MockClock().sleep(seconds)
    with pytest.raises(ValueError, match="forward"):
        MockClock().advance(seconds)
