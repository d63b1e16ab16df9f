"""Runs shared out among processes, each watched: one that hangs says where, and is named with what repeats it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import sys
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import torch

from tests.soak.machine import LENGTH, Counts, run, shrunk

HANGING = 120.0  # seconds after which a run of fifty things hangs
_ENOUGH = 5  # violations, after which the soak ends
_REPORTS = 5.0  # seconds between a worker's reports
_PROGRESS = 15.0  # seconds between lines of progress
_FIGURES = ("runs", "control_steps", "scheduler_steps", "operations", "requests", "tokens")


@dataclass(frozen=True)
class Goal:
    """When to stop: at whichever comes first."""

    seconds: float | None = None
    steps: int | None = None


@dataclass
class Result:
    """What all workers did together."""

    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)
    violations: list[dict[str, object]] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        counts = {name: getattr(self.counts, name) for name in _FIGURES}
        seen = dict(sorted(self.counts.seen.items()))
        return {"seconds": round(self.seconds, 1), **counts, "violations": self.violations, "seen": seen}


def soak(goal: Goal, seed: int, workers: int) -> Result:
    """Runs of the seeds ``seed``, ``seed + 1`` and so on, until the goal is reached or too much is wrong."""
    result, began, shown = Result(), time.monotonic(), 0.0
    context = multiprocessing.get_context("spawn")
    share = None if goal.steps is None else -(-goal.steps // workers)
    lines: dict[Connection, _Worker] = {}
    for number in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(theirs, seed + number, workers, goal.seconds, share), daemon=True
        )
        process.start()
        theirs.close()
        lines[ours] = _Worker(process, seed + number)
    try:
        while lines and len(result.violations) < _ENOUGH:
            for line in wait([*lines], timeout=_REPORTS):
                assert isinstance(line, Connection)
                if not _hear(line, lines[line], result):
                    del lines[line]
            result.seconds = time.monotonic() - began
            if result.seconds - shown > _PROGRESS or not lines:
                shown = result.seconds
                _show(result, goal)
    finally:
        for worker in lines.values():
            worker.process.terminate()
    return result


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    seed: int  # of the run that it is at


def _hear(line: Connection, worker: _Worker, result: Result) -> bool:
    """Take in what a worker says; whether it goes on."""
    try:
        kind, value = line.recv()
    except EOFError:
        worker.process.join()
        result.violations.append(
            {
                "seed": worker.seed,
                "error": f"The run ended its process, or hung for {HANGING:g} s (exit {worker.process.exitcode}).",
                "repeat": repeat(worker.seed),
            }
        )
        return False
    if kind == "seed":
        worker.seed = value
    elif kind == "counts":
        result.counts.add(value)
    elif kind == "violation":
        result.violations.append(value)
    return kind != "done"


def _work(line: Connection, seed: int, stride: int, seconds: float | None, steps: int | None) -> None:
    """Every ``stride``-th run, in a process of its own."""
    torch.set_num_threads(1)
    began, told = time.monotonic(), 0.0
    done, since = 0, Counts()
    while (steps is None or done < steps) and (seconds is None or time.monotonic() - began < seconds):
        line.send(("seed", seed))
        faulthandler.dump_traceback_later(HANGING, exit=True)
        try:
            counts = run(seed)
        except Exception as error:
            traceback.print_exc()
            counts = Counts(runs=1)
            line.send(("violation", failure(seed, error)))
        since.add(counts)
        done += counts.control_steps or LENGTH
        if time.monotonic() - told > _REPORTS:
            line.send(("counts", since))
            told, since = time.monotonic(), Counts()
        seed += stride
    faulthandler.cancel_dump_traceback_later()
    line.send(("counts", since))
    line.send(("done", None))


def failure(seed: int, error: Exception) -> dict[str, object]:
    """What went wrong, and the fewest things that make it go wrong again."""
    faulthandler.dump_traceback_later(3 * HANGING, exit=True)  # fewer things may hang
    return {
        "seed": seed,
        "error": f"{type(error).__name__}: {error}"[:1500],
        "repeat": repeat(seed, shrunk(seed)),
    }


def repeat(seed: int, only: list[int] | None = None) -> str:
    """The command that makes a run again."""
    command = f"python -m tests.soak --run {seed}"
    if only is None or len(only) == LENGTH:
        return command
    return f"{command} --only {','.join(map(str, only)) or 'none'}"


def _show(result: Result, goal: Goal) -> None:
    counts = result.counts
    of = "" if goal.steps is None else f" of {goal.steps:,}"
    rate = counts.control_steps / max(result.seconds, 1e-9)
    print(
        f"{result.seconds:6.0f} s  control steps {counts.control_steps:,}{of} ({rate:,.0f} a second), "
        f"violations {len(result.violations)}",
        file=sys.stderr,
        flush=True,
    )
