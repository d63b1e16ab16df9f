"""Benchmarks of the scheduler alone: what a step costs beside the model, steady and with requests in and out.

The runner answers at once with the same token, so all that is timed is the host's bookkeeping, whole: taking in
messages, admission, pages, stop conditions, prefix cache, outputs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from time import process_time

import numpy as np
import torch

from bench.harness import Row, Timing, cpu_seconds, measure, measure_by, timed_row
from devicekit.device import Device, get_device
from devicekit.scheduling.batch import ForwardBatch, Int32, ModelLimits, StepOutput
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits

_POSITIONS = 60_000
_PROMPT = 64
_STAY = 128  # decode steps of a request that comes and goes
_GROUP = 16  # steps timed together: every group then holds the same number of arrivals
_WARM, _GROUPS = 16, 48
_SPREAD = 256  # requests running where the spread of single steps is shown
_SINGLE_STEPS = 3000
_PERCENTILES = (50, 90, 99)


class ConstantRunner:
    """A model that always says the same token, in no time."""

    def __init__(self, most: int, positions: int = _POSITIONS) -> None:
        self.limits = ModelLimits(32_000, positions, frozenset({2}))
        self._tokens: Int32 = np.full(most, 7, np.int32)

    def step(self, batch: ForwardBatch) -> StepOutput:
        return StepOutput(self._tokens[: len(batch.logits_indices)])

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


def run() -> list[Row]:
    """Every row, smallest batch first."""
    device = get_device("cpu")
    return [*_steady_rows(device), *_churn_rows(device), *_spread_rows(device)]


def _steady_rows(device: Device) -> list[Row]:
    rows: list[Row] = []
    for running in (16, 64, 256, 1024, 4096):
        timing = measure("step()", {"step": steady(device, running).step})
        case, curve = f"decode step, {running:,} running", "decode step, by requests running"
        rows.append(timed_row(case, timing, curve=curve, at=running))
    return rows


def _churn_rows(device: Device) -> list[Row]:
    rows: list[Row] = []
    for running in (64, 256, 1024, 4096):
        timing = measure_by(churn(device, running), samples=_GROUPS)
        case, curve = f"churn step, {running:,} running", "churn step, by requests running"
        rows.append(timed_row(case, timing, curve=curve, at=running))
    return rows


def _spread_rows(device: Device) -> list[Row]:
    """Percentiles of single steps: what a client sees is the slow ones."""
    rows: list[Row] = []
    step = steady(device, _SPREAD).step
    steps = {"decode": lambda: cpu_seconds(step), "churn": churn(device, _SPREAD, group=1)}
    for name, once in steps.items():
        samples = [once() * 1e6 for _ in range(_SINGLE_STEPS)]
        for percentile, us in percentiles(samples).items():
            case = f"single {name} steps, {_SPREAD} running: {percentile}th percentile"
            rows.append(timed_row(case, Timing.of(us)))
    return rows


def percentiles(samples: list[float]) -> dict[int, float]:
    """The median, the 90th and the 99th percentile."""
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return {percentile: cuts[percentile - 1] for percentile in _PERCENTILES}


def steady(device: Device, running: int, *, page_size: int = 16, positions: int = _POSITIONS) -> Scheduler:
    """A scheduler in which ``running`` requests decode for a long time."""
    scheduler = _scheduler(device, running, running * positions // page_size, page_size, positions)
    params = SamplingParams(max_new_tokens=positions, temperature=0.0)
    for number in range(running):
        # Of different lengths, so that every step has pages to hand out.
        scheduler.add(Request(f"r{number}", _prompt(number)[: _PROMPT - number % 16], params))
    while len(scheduler.state.running) < running:
        scheduler.step()
    return scheduler


def churn(device: Device, running: int, *, group: int = _GROUP) -> Callable[[], float]:
    """Runs ``group`` steps in which one request in 128 ends and another begins; returns CPU seconds of a step."""
    scheduler = _scheduler(device, running, running * 64, 16, _POSITIONS)
    params = SamplingParams(max_new_tokens=_STAY, temperature=0.0)
    # Half of each prompt is one that all share, as a system prompt is.
    shared = _prompt(0)[: _PROMPT // 2]
    own = np.random.default_rng(1).integers(3, 32_000, (1 << 15, _PROMPT // 2), dtype=np.int32)
    numbers = itertools.count()
    rate = running / _STAY
    owed = 0.0

    def steps() -> float:
        nonlocal owed
        due: list[list[tuple[str, Int32]]] = []
        for _ in range(group):
            owed += rate
            coming = [next(numbers) for _ in range(int(owed))]
            due.append([(f"r{one}", np.concatenate((shared, own[one % len(own)]))) for one in coming])
            owed -= int(owed)
        started = process_time()
        for prompts in due:
            for identity, prompt in prompts:
                scheduler.add(Request(identity, prompt, params))
            scheduler.step()
        return (process_time() - started) / group

    for _ in range(_STAY * 2 // group):
        steps()
    return steps


def _scheduler(device: Device, running: int, pages: int, page_size: int, positions: int) -> Scheduler:
    limits = SchedulerLimits(
        num_pages=pages,
        page_size=page_size,
        max_running=running + 64,
        max_batch_tokens=8192 + running,
        conservativeness=0.01,
    )
    return Scheduler(ConstantRunner(running + 64, positions), device, limits)


def _prompt(number: int) -> Int32:
    return np.random.default_rng(number).integers(3, 32_000, _PROMPT, dtype=np.int32)
