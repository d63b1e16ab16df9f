"""What a step costs as a server runs it: requests that stream, are sampled, have stop strings, and come anew.

Tokens vary, as a model's do, over a byte-level vocabulary of words. Every figure is the engine thread's own: the
tokens of streams have left it as columns, and nobody has read them yet.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from time import process_time

import numpy as np

from bench.harness import Row, Timing, cpu_seconds, timed_row
from bench.scheduler import ConstantRunner
from devicekit.device import get_device
from devicekit.scheduling.batch import ForwardBatch, Int32, StepOutput
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits

_SIZE = 32_000
_OUTPUT = 6000
_PROMPT = 64
_RUNNING = 1024
_STAY = 128  # decode steps of a request that comes and goes
_STEPS = 20  # timed together
_ROUNDS = 21
_STREAMED, _SAMPLED, _STOPPED = 0.2, 0.1, 0.05  # shares of the mix
_STREAM_TARGET = 600.0  # ns a request, beyond a plain step


class Words:
    """A byte-level vocabulary of made-up words, some of them punctuation."""

    byte_level = knows_bytes = True

    def __init__(self) -> None:
        rng = random.Random(3)
        marks = [".", ",", "\n", "\n\n", ":", ")", '"', "?"]
        self._words = [
            rng.choice(marks).encode()
            if rng.random() < 0.04
            else (
                " " * (rng.random() < 0.6) + "".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 7)))
            ).encode()
            for _ in range(_SIZE)
        ]

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, spaces: bool = True) -> str:
        return b"".join(self._words[token] for token in tokens).decode()

    def is_hidden(self, token: int, skip_special_tokens: bool) -> bool:
        return not 0 <= token < _SIZE

    def raw_bytes(self, token: int) -> bytes:
        return self._words[token]

    token_bytes = raw_bytes

    def stream(self, context: Sequence[int], skip_special_tokens: bool) -> None:
        return None


words = cache(Words)


class VaryingRunner(ConstantRunner):
    """Says other tokens in every step, in no time."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        shape = (256, most)
        self._said: Int32 = np.random.default_rng(0).integers(3, _SIZE, shape, dtype=np.int32)
        self._turn = itertools.cycle(self._said)

    def step(self, batch: ForwardBatch) -> StepOutput:
        return StepOutput(next(self._turn)[: len(batch.logits_indices)])


def run() -> list[Row]:
    """Steps of 1,024 by what their requests want, and steps in which requests come as a server makes them."""
    steps = {
        kind: cpu_step(scheduler_of(_RUNNING, kind)) for kind in ("plain", "streaming", "mix", "ignore_eos")
    }
    times = alternating(steps)
    rows = [timed_row(f"{kind} step, {_RUNNING:,} running", Timing.of(us)) for kind, us in times.items()]
    beyond = (times["streaming"] - times["plain"]) / _RUNNING * 1e3
    rows.append(Row("streaming beyond a plain step, a request", beyond, "ns", target=_STREAM_TARGET))
    for running in (64, 256, 1024):
        coming = alternating({"served": served(running)})
        rows.append(timed_row(f"served churn step, {running:,} running", Timing.of(coming["served"])))
    return rows


def alternating(contenders: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Median CPU microseconds of each, timed in turns. Each returns the CPU seconds of one operation."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(_ROUNDS):
        for name, once in contenders.items():
            found[name].append(once() * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


def cpu_step(scheduler: Scheduler) -> Callable[[], float]:
    """CPU seconds of a step, of some steps together."""
    return lambda: cpu_seconds(scheduler.step, _STEPS)


def scheduler_of(running: int, kind: str) -> Scheduler:
    """A scheduler in which so many decode: ``plain``, ``streaming``, ``ignore_eos``, or a ``mix``."""
    scheduler, rng = _scheduler(running), random.Random(1)
    for number in range(running):
        wishes: dict[str, object] = {"ignore_eos": kind == "ignore_eos"}
        stream = kind == "streaming"
        if kind == "mix":
            stream = rng.random() < _STREAMED
            if rng.random() < _SAMPLED:
                wishes |= {"temperature": 0.8, "top_p": 0.9}
            if rng.random() < _STOPPED:
                wishes |= {"stop": ("\n\nUser:", "###END")}
        params = SamplingParams(max_new_tokens=_OUTPUT, **({"temperature": 0.0} | wishes))  # type: ignore[arg-type]
        prompt = np.random.default_rng(number).integers(3, _SIZE, _PROMPT - number % 16, dtype=np.int32)
        scheduler.add(Request(f"r{number}", prompt, params, stream=stream))
    while len(scheduler.state.running) < running:
        scheduler.step()
    for _ in range(64):  # what is looked up once is known
        scheduler.step()
    return scheduler


def served(running: int) -> Callable[[], float]:
    """Steps in which one request in 128 ends and another comes, as a server makes it; CPU seconds of a step.

    Each comes with parameters of its own and ends by length. It is made of a list of numbers, checked, posted, and
    taken in by the step: the HTTP side of it, and reading what comes out, are not in the figure.
    """
    scheduler = _scheduler(running)
    shared = list(range(3, 3 + _PROMPT // 2))
    numbers, rng = itertools.count(), random.Random(1)
    rate = running / _STAY
    owed = 0.0

    def steps() -> float:
        nonlocal owed
        due: list[list[tuple[str, list[int]]]] = []
        for _ in range(_STEPS):
            owed += rate
            due.append(
                [(f"r{next(numbers)}", shared + rng.choices(range(_SIZE), k=32)) for _ in range(int(owed))]
            )
            owed -= int(owed)
        started = process_time()
        for prompts in due:
            for identity, tokens in prompts:
                params = SamplingParams(max_new_tokens=_STAY, temperature=0.0)
                request = Request(identity, np.array(tokens, np.int32), params)
                scheduler.check(request)
                scheduler.post(request)
            scheduler.step()
        return (process_time() - started) / _STEPS

    for _ in range(_STAY * 2 // _STEPS):
        steps()
    return steps


def _scheduler(running: int) -> Scheduler:
    limits = SchedulerLimits(
        num_pages=running * 512,
        max_running=running + 64,
        max_batch_tokens=8192 + running,
        conservativeness=0.01,
    )
    return Scheduler(VaryingRunner(running + 64), get_device("cpu"), limits, detokenizer=words())
