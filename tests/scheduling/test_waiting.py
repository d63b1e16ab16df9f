"""The order in which requests run, and that nobody waits for ever."""

from __future__ import annotations

import random

import numpy as np
import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.scheduling.request import Request
from devicekit.scheduling.waiting import HEAD_START, WaitingQueue


def request(arrival: int, priority: int = 0, length: int = 10) -> Request:
    made = Request(f"r{arrival}", np.ones(length, np.int32), priority=priority)
    made.arrival = arrival
    return made


def order(queue: WaitingQueue) -> list[int]:
    queue.arrange()
    return [one.arrival for one in queue]


def test_first_come_is_first_served_and_the_retracted_return_to_their_place() -> None:
    queue = WaitingQueue("fcfs")
    for arrival in (2, 5, 3):
        queue.add(request(arrival, priority=9))
    assert order(queue) == [2, 3, 5]
    taken = queue.take_first()
    queue.add(request(7))
    queue.add(taken)
    assert order(queue) == [2, 3, 5, 7]


def test_higher_priority_goes_first() -> None:
    queue = WaitingQueue("priority")
    for arrival, priority in ((1, 0), (2, 3), (3, -1), (4, 3)):
        queue.add(request(arrival, priority))
    assert order(queue) == [2, 4, 1, 3]


def test_what_is_cached_goes_first() -> None:
    queue = WaitingQueue("longest_prefix", lambda one: {1: 0, 2: 9, 3: 4}[one.arrival])
    for arrival in (1, 2, 3):
        queue.add(request(arrival))
    assert order(queue) == [2, 3, 1]


@pytest.mark.parametrize("policy", ["priority", "longest_prefix"])
def test_a_request_is_overtaken_only_a_bounded_number_of_times(policy: str) -> None:
    """The unluckiest request of all against an endless stream of luckier ones."""
    queue = WaitingQueue(policy, lambda one: 0 if one.arrival == 1 else 10)
    queue.add(request(1))
    overtaken = 0
    for arrival in range(2, 10 * HEAD_START):
        queue.add(request(arrival, priority=1))
        queue.arrange()
        if queue.take_first().arrival == 1:
            break
        overtaken += 1
    assert 0 < overtaken <= HEAD_START


def test_any_request_can_be_taken_out() -> None:
    rng = random.Random(1)
    queue = WaitingQueue("priority")
    waiting = [request(arrival, rng.randrange(3)) for arrival in range(50)]
    for one in waiting:
        queue.add(one)
    gone = waiting[::3]
    for one in gone:
        queue.remove(one)
    assert len(queue) == len(waiting) - len(gone)
    assert not {one.arrival for one in gone} & set(order(queue))


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="'fcfs', 'priority', 'longest_prefix', not 'lifo'"):
        WaitingQueue("lifo")
