"""What a step and an abort cost beside the requests that wait: counted in bytecodes and calls, not in seconds."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

from devicekit.device import Device
from devicekit.scheduling.messages import Abort
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from devicekit.scheduling.waiting import POLICIES, WaitingQueue
from devicekit.server.snapshot import Observation
from tests.hash_runner import HashRunner

RUNNING = 64
FEW, MANY = 200, 10_000
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "streaming": {"stream": True},
    "timeouts": {"timeout": 1000.0},
    "special": {"params": SamplingParams(max_new_tokens=9, temperature=0.8, logprobs=2, stop_token_ids=(5,))},
}


def counted(call: Callable[[], object]) -> int:
    """Bytecodes that ``call`` runs, and calls of functions written in C."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    def profile(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event == "c_call"

    tracing, profiling = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.settrace(tracing)
        sys.setprofile(profiling)
    return count


LONG = np.arange(4000, dtype=np.int32) % 97  # of the prompts that find no room


def made(
    device: Device, policy: str, waiting: int, kind: str, *, pages: int = 4096, rows: int = RUNNING
) -> Scheduler:
    """A scheduler with 64 requests in the middle of their output, and others that wait."""
    rng = random.Random(1)
    runner = HashRunner(device, num_pages=pages, page_size=4)
    limits = SchedulerLimits(
        num_pages=pages, page_size=4, max_running=rows, max_batch_tokens=1024, policy=policy
    )
    scheduler = Scheduler(runner, device, limits)
    for index in range(RUNNING):
        plain = SamplingParams(max_new_tokens=150, temperature=0.0)
        scheduler.add(Request(f"runs {index}", np.arange(8, dtype=np.int32) + index, plain))
    for _ in range(3):
        scheduler.step()
    assert len(scheduler.state.running) == RUNNING
    short = SamplingParams(max_new_tokens=4, temperature=0.0)
    for index in range(waiting):
        prompt = np.arange(rng.randint(8, 20), dtype=np.int32) + rng.randrange(70)
        prompt = LONG if rows > RUNNING else prompt
        fields = {"params": short, "priority": rng.randint(-1, 1), **KINDS[kind]}
        scheduler.add(Request(f"waits {index}", prompt, **fields))
    scheduler.step()
    assert len(scheduler.state.waiting) == waiting
    return scheduler


def steps(scheduler: Scheduler, count: int = 4) -> int:
    """Of that many steps, each with the look that a server takes behind it."""
    observation = Observation(scheduler)

    def run() -> None:
        for step in range(count):
            scheduler.step()
            observation.note(step, step)

    return counted(run)


def alike(one: int, other: int) -> bool:
    return abs(one - other) <= 0.03 * min(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_costs_the_same_however_many_wait(device: Device, policy: str, kind: str) -> None:
    nobody, few, many = (steps(made(device, policy, waiting, kind)) for waiting in (0, FEW, MANY))
    print(policy, kind, nobody, few, many)
    assert alike(few, many)
    assert many <= 1.1 * nobody, "beyond the look at the earliest deadline"


@pytest.mark.parametrize("policy", POLICIES)
def test_while_memory_is_short_a_step_costs_the_same_however_many_wait(device: Device, policy: str) -> None:
    # Rows are free, and not enough of the pool is left beside what is held back for those that run.
    few, many = (
        steps(made(device, policy, waiting, "plain", pages=2400, rows=80)) for waiting in (FEW, MANY)
    )
    print(policy, few, many)
    assert alike(few, many)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_request_that_starts_costs_the_same_however_many_wait(device: Device, policy: str) -> None:
    found = []
    for waiting in (FEW, MANY):
        scheduler = made(device, policy, waiting, "plain")
        scheduler.post(Abort("one", request_id="runs 3"))
        found.append(counted(scheduler.step))
        assert len(scheduler.state.waiting) == waiting - 1
    print(policy, found)
    assert alike(*found)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_abort_by_id_costs_the_same_however_many_wait(device: Device, policy: str) -> None:
    found = []
    for waiting in (FEW, MANY):
        scheduler = made(device, policy, waiting, "plain")
        scheduler.post(Abort("one", request_id=f"waits {waiting // 2}"))
        found.append(counted(scheduler.step))
        assert len(scheduler.state.waiting) == waiting - 1
    print(policy, found)
    assert alike(*found)


@pytest.mark.parametrize("kind", ["plain", "timeouts"])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_abort_of_all_costs_each_of_them_the_same(device: Device, policy: str, kind: str) -> None:
    found = []
    for waiting in (400, 4000):
        scheduler = made(device, policy, waiting, kind)
        scheduler.post(Abort("all", all=True))
        found.append(counted(scheduler.step) / (waiting + RUNNING))
        assert not scheduler.state.requests
    print(policy, kind, found)
    assert found[1] <= 1.1 * found[0]


class Counting(int):
    """An order of arrival that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: object) -> bool:
        Counting.compared += 1
        return int.__lt__(self, other)  # type: ignore[operator]

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return int.__eq__(self, other)

    def __sub__(self, other: int) -> Counting:
        return Counting(int(self) - other)

    __hash__ = int.__hash__


@pytest.mark.parametrize("policy", POLICIES)
def test_a_place_in_the_queue_is_found_with_few_comparisons(policy: str) -> None:
    def per_request(count: int) -> float:
        queue, rng = WaitingQueue(policy), random.Random(2)
        requests = []
        for arrival in range(count):
            one = Request(f"{arrival}", np.ones(4, np.int32), priority=rng.randint(-2, 2))
            one.arrival = Counting(arrival)
            requests.append(one)
        Counting.compared = 0
        for one in requests:
            queue.add(one)
        for one in rng.sample(requests, count // 2):
            queue.remove(one)
        while (first := queue.first()) is not None:
            queue.remove(first)
        return Counting.compared / count

    few, many = per_request(500), per_request(8000)
    print(policy, few, many)
    assert many <= 2.5 * max(few, 4)
