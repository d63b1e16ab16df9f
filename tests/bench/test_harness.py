from __future__ import annotations

from time import process_time

import pytest

from bench.harness import (
    Peer,
    Row,
    Timing,
    Yardstick,
    cpu_seconds,
    growth_row,
    measure,
    measure_by,
    timed_row,
)


def test_a_target_beside_a_peer_is_of_pairs_timed_in_turns() -> None:
    ours = Timing(us=2, multiple=1)
    row = timed_row("case", ours, peer=Peer("peer", us=50, times=10), target=9)
    assert (row.advantage, row.peer_us, row.met) == (10, 50, True)
    assert timed_row("case", ours, peer=Peer("peer", us=50, times=8), target=9).met is False


def test_without_a_peer_the_target_is_the_most_a_value_may_be() -> None:
    assert Row("case", 1.4, "x", target=1.5).met is True
    assert Row("case", 1.6, "x", target=1.5).met is False
    assert Row("case", 1.6, "x").met is None
    assert Row("case", 1.6, "x").advantage is None


def test_growth_is_that_of_yardsticks() -> None:
    assert growth_row("case", Timing(1, 10), Timing(100, 30), 2.0).value == pytest.approx(3)


def test_more_work_takes_more_time_and_more_yardsticks() -> None:
    numbers = {"numbers": list(range(4000))}
    much, little = measure("sum(numbers)", numbers), measure("sum(numbers[:100])", numbers)
    assert much.us > 4 * little.us
    assert much.multiple > 4 * little.multiple
    assert much.beyond(little).us == pytest.approx(much.us - little.us)


def test_one_slow_sample_changes_nothing() -> None:
    samples = iter([1e-6, 1e-6, 5.0, 1e-6, 1e-6])
    timing = measure_by(lambda: next(samples), samples=5)
    assert timing.us == pytest.approx(1.0)
    assert timing.multiple == pytest.approx(1.0 / Yardstick.ADD.here_us, rel=1.0)


def test_cpu_seconds_are_those_of_one_of_many_calls() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(sum(range(20_000)))

    started = process_time()
    assert 0 < cpu_seconds(work, 20) <= (process_time() - started) / 20
    assert len(calls) == 20
