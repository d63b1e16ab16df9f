"""Benchmarks of the scheduler alone: what a step costs beside the model, steady and with requests in and out.

The runner answers at once with the same token, so all that is timed is the host's bookkeeping, whole: taking in
messages, admission, pages, stop conditions, prefix cache, outputs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from time import process_time

import numpy as np
import torch

from devicekit.device import Device
from devicekit.devtools.bench.harness import Peer, Row, time_us, timed_row
from devicekit.opening import get_device
from devicekit.scheduling.batch import ForwardBatch, Int32, ModelLimits, StepOutput
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits

_POSITIONS = 60_000
_PROMPT = 64
_STAY = 128  # decode steps of a request that comes and goes
_GROUP = 16  # steps timed together: every group then holds the same number of arrivals
_STEADY = {
    64: (34.0, 4.0),
    256: (134.0, 7.0),
    1024: (575.0, 15.0),
}  # nano-vllm's microseconds, and the target
_CHURN = {64: (48.0, 2.0), 256: (184.0, 3.0), 1024: (812.0, 5.0)}


class ConstantRunner:
    """A model that always says the same token, in no time."""

    def __init__(self, most: int) -> None:
        self.limits = ModelLimits(32_000, _POSITIONS, frozenset({2}))
        self._tokens: Int32 = np.full(most, 7, np.int32)

    def step(self, batch: ForwardBatch) -> StepOutput:
        return StepOutput(self._tokens[: len(batch.wanted)])

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


def run() -> list[Row]:
    """Every row, smallest batch first."""
    device = get_device("cpu")
    rows: list[Row] = []
    for running in (64, 256, 1024, 4096):
        us = time_us("step()", {"step": steady(device, running).step})
        peer, target = _STEADY.get(running, (None, None))
        rows.append(_row(f"decode step, {running} running", us, peer, target))
    for running in (64, 256, 1024):
        peer, target = _CHURN[running]
        rows.append(_row(f"churn step, {running} running", churn(device, running), peer, target))
    return rows


def _row(case: str, us: float, peer: float | None, target: float | None) -> Row:
    return timed_row(case, us, peer=None if peer is None else Peer("nano-vllm", peer), target=target)


def steady(device: Device, running: int) -> Scheduler:
    """A scheduler in which ``running`` requests decode for a long time."""
    scheduler = _scheduler(device, running, running * _POSITIONS // 16)
    params = SamplingParams(max_new_tokens=_POSITIONS, temperature=0.0)
    for number in range(running):
        # Of different lengths, so that every step has pages to hand out.
        scheduler.add(Request(f"r{number}", _prompt(number)[: _PROMPT - number % 16], params))
    while len(scheduler.state.running) < running:
        scheduler.step()
    return scheduler


def churn(device: Device, running: int) -> float:
    """Median CPU microseconds of a step in which one request in 128 ends and another begins."""
    scheduler = _scheduler(device, running, running * 64)
    params = SamplingParams(max_new_tokens=_STAY, temperature=0.0)
    total = (_STAY * 8 + 1) * max(1, running // _STAY)
    # Half of each prompt is one that all share, as a system prompt is.
    shared = _prompt(0)[: _PROMPT // 2]
    prompts = iter([np.concatenate((shared, _prompt(number)[_PROMPT // 2 :])) for number in range(total)])
    numbers = itertools.count()

    def refill(count: int) -> None:
        for _ in range(count):
            scheduler.add(Request(f"r{next(numbers)}", next(prompts), params))

    rate = running / _STAY
    owed = 0.0
    samples: list[float] = []
    for group in range(_STAY * 8 // _GROUP):
        started = process_time()
        for _ in range(_GROUP):
            owed += rate
            refill(int(owed))
            owed -= int(owed)
            scheduler.step()
        if group * _GROUP > _STAY * 2:
            samples.append((process_time() - started) / _GROUP)
    return statistics.median(samples) * 1e6


def _scheduler(device: Device, running: int, pages: int) -> Scheduler:
    limits = SchedulerLimits(
        num_pages=pages, max_running=running + 64, max_batch_tokens=8192 + running, conservativeness=0.01
    )
    return Scheduler(ConstantRunner(running + 64), device, limits)


def _prompt(number: int) -> Int32:
    return np.random.default_rng(number).integers(3, 32_000, _PROMPT, dtype=np.int32)
