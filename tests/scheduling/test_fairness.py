"""Under an overload that does not end nobody waits for ever, and the same input gives the same schedule."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import devicekit
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits

PRIORITIES = (0, 1)
HEAD_START = 24  # instead of the real one, which would take ten times as many requests to see
BACKLOG = 6 * HEAD_START
RUNNING = 12
AHEAD = 4  # that may start before one that waits for a prompt it shares, and as many as run in the last round
# How many later arrivals may be admitted while a request waits: the policy's head start, and those.
BOUNDS = {
    policy: bound + AHEAD + RUNNING
    for policy, bound in {
        "fcfs": 0,
        "priority": HEAD_START * (PRIORITIES[-1] - PRIORITIES[0]),
        "longest_prefix": HEAD_START,
    }.items()
}


@pytest.fixture(autouse=True)
def _short_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devicekit.scheduling.waiting.HEAD_START", HEAD_START)
    monkeypatch.setattr("devicekit.scheduling.planning.MOST_AHEAD", AHEAD)


class MixingRunner:
    """The next token depends on the input token and its position, and is now and then the end token."""

    limits = ModelLimits(vocab_size=97, max_positions=200, eos_token_ids=frozenset({2}))

    def __init__(self) -> None:
        self.trace: list[object] = []

    def step(self, batch: ForwardBatch) -> StepOutput:
        self.trace.append(
            [
                array.tolist()
                for array in (
                    batch.input_ids,
                    batch.slot_mapping,
                    batch.req_pool_indices,
                    batch.query_start_loc,
                )
            ]
        )
        at = batch.logits_indices
        return StepOutput((batch.input_ids[at] * 31 + batch.positions[at] * 17 + 5).astype(np.int32) % 97)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


class Load:
    """A scheduler whose queue never gets shorter, and who overtook whom."""

    def __init__(self, policy: str, seed: int) -> None:
        limits = SchedulerLimits(
            num_pages=40,
            page_size=4,
            max_running=RUNNING,
            max_batch_tokens=24,
            policy=policy,
            conservativeness=0.05,
        )
        self.rng = random.Random(seed)
        self.scheduler = Scheduler(MixingRunner(), devicekit.get_device("cpu"), limits)
        self.shared = [[self.rng.randrange(3, 97) for _ in range(16)] for _ in range(3)]
        self.made = 0
        self.overtaken: dict[str, int] = {}  # by id, in the present wait
        self.most = self.retractions = 0

    def arrive(self, count: int) -> None:
        for _ in range(count):
            self.made += 1
            own = [self.rng.randrange(3, 97) for _ in range(self.rng.randint(1, 6))]
            prompt = [*(self.rng.choice(self.shared) if self.rng.random() < 0.5 else []), *own]
            special = self.rng.random() < 0.5
            params = SamplingParams(
                max_new_tokens=self.rng.randint(1, 24),
                temperature=0.0,
                stop_token_ids=tuple(range(3, 97, 9)) if special else (),
            )
            self.scheduler.add(
                Request(
                    f"r{self.made}",
                    np.array(prompt),
                    params,
                    priority=self.rng.choice(PRIORITIES),
                    stream=self.rng.random() < 0.3,
                )
            )

    def step(self) -> None:
        state = self.scheduler.state
        before = {request.id: request for request in state.waiting}
        outputs = self.scheduler.step().outputs
        waiting = {request.id for request in state.waiting}
        admitted = [request.arrival for identity, request in before.items() if identity not in waiting]
        self.overtaken = {identity: self.overtaken.get(identity, 0) for identity in waiting}
        if admitted:
            for identity in waiting & before.keys():
                self.overtaken[identity] += sum(one > before[identity].arrival for one in admitted)
            self.most = max(self.most, *self.overtaken.values())
        finished = [output for output in outputs if output.finish is not None]
        self.retractions += sum(output.retractions for output in finished)
        self.arrive(len(finished))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("policy", BOUNDS)
def test_overtaking_is_bounded_under_an_overload_that_does_not_end(policy: str, seed: int) -> None:
    load = Load(policy, seed)
    load.arrive(BACKLOG)
    first = set(load.scheduler.state.requests)
    while load.made < 3 * BACKLOG:
        load.step()
    assert load.most <= BOUNDS[policy]
    assert load.retractions > 0
    assert not first & load.scheduler.state.requests.keys()
    if policy != "fcfs":
        assert load.most > 0


def trace(policy: str) -> str:
    load = Load(policy, 3)
    load.arrive(40)
    for _ in range(200):
        load.step()
    runner = load.scheduler.state.runner
    assert isinstance(runner, MixingRunner)
    return repr(runner.trace)


@pytest.mark.parametrize("policy", BOUNDS)
def test_the_same_input_gives_the_same_schedule_in_one_process(policy: str) -> None:
    assert trace(policy) == trace(policy)


def test_the_same_input_gives_the_same_schedule_in_every_process() -> None:
    """Ranks must agree without talking: nothing may depend on the order of a set of strings."""
    code = (
        "import runpy, hashlib\n"
        f"trace = runpy.run_path({str(Path(__file__))!r})['trace']\n"
        "print(hashlib.sha256(''.join(map(trace, ('fcfs', 'priority', 'longest_prefix'))).encode()).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    ]
    assert digests[0] == digests[1] != ""
