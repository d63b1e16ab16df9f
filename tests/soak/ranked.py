"""Random control sequences on several ranks, with faults on any one of them, run until a time is up, and counted.

After each run all ranks must have given the same answers, each once, and have been left in the same state after
every one of them; where a rank was made to die, the others must have answered everything and said which it was.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from devicekit.scheduling.scheduler import Step
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.processes import World
from tests.scheduling.ranked_faults import POINTS, die
from tests.scheduling.ranked_world import Rank, Record, agree, make_rank
from tests.scheduling.rig import Clock, LateCopier
from tests.soak.ranked_operator import LAST, PROMPT, HashWeights, Operator

_DEATH = 20  # one run in so many loses a rank


@dataclass
class Counts:
    """What has happened so far."""

    ranks: int
    seconds: float = 0.0
    runs: int = 0
    control_steps: int = 0  # things that happened: verbs, requests, time; faults come on top
    scheduler_steps: int = 0  # of each rank
    faults: int = 0  # that came to pass, on any rank
    deaths: int = 0
    operations: int = 0
    operations_answered_once: int = 0
    operations_refused: int = 0
    requests: int = 0
    requests_answered_once: int = 0
    violations: list[dict[str, object]] = field(default_factory=list)


def run_ranked(ranks: int, seconds: float, first_seed: int) -> Counts:
    """Random runs for so long, each of a seed of its own that repeats it."""
    counts = Counts(ranks)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(3):
            save_file(make_weights(seed), Path(folder, f"{seed}.safetensors"))
        soak_ranks(counts, seconds, first_seed, lambda world, seed: _play(world, seed, folder))
    return counts


Played = tuple[list[Record], int]
"""What came of a run on each rank that lives, and how many it cost."""


def soak_ranks(counts: Counts, seconds: float, first_seed: int, play: Callable[[World, int], Played]) -> None:
    """Count run after run, each of another seed."""
    began = time.monotonic()
    world = World(counts.ranks, forked=True)
    number = first_seed
    while time.monotonic() - began < seconds:
        try:
            _count(counts, *play(world, number))
        except Exception as error:  # told with its seed, and the soak goes on
            traceback.print_exc(file=sys.stderr)
            counts.violations.append({"seed": number, "error": f"{type(error).__name__}: {error}"[:500]})
            world.close()
            world = World(counts.ranks, forked=True)
        number += 1
    world.close()
    counts.seconds = round(time.monotonic() - began, 1)


def _play(world: World, seed: int, folder: str) -> Played:
    chance = random.Random(f"death {seed}")
    ranks = len(world.pipes)
    if chance.randrange(_DEATH):
        records = world.play(random_run, seed, folder, -1, 0)
        first = agree(records)
        assert first.replies["last"].success, first.replies["last"].message
        assert first.tokens["after"] == expected(PROMPT, 5, salt_of(make_weights(LAST)))
        return records, 0
    who = chance.randrange(ranks)
    records = world.play(random_run, seed, folder, who, chance.randint(2, 60), expect=str(who))
    world.replace(str(who))
    judge_lost(records, who)
    return records, 1


def judge_lost(records: list[Record], who: int) -> None:
    """What must hold where a rank was lost."""
    for record in records:
        assert record.lost is not None, "a rank's death was not noticed"
        assert record.lost[1] == (who,), record.lost
        assert record.balanced, "pages were lost"
        assert not record.twice, f"answered twice: {record.twice}"
        assert record.finishes.keys() >= record.tokens.keys(), "a request did not end"


def _count(counts: Counts, records: list[Record], deaths: int) -> None:
    counts.runs += 1
    counts.deaths += deaths
    counts.faults += sum(int(str(record.notes.get("faults", 0))) for record in records)
    first = next((record for record in records if record.posted), None)
    if first is None:  # rank 0 died, and with it the knowledge of what was asked
        return
    answered = first.replies.keys() | first.finishes.keys()
    assert set(first.posted) == answered, f"no answer: {set(first.posted) - answered}"
    asked = set(first.posted) - first.replies.keys()
    counts.control_steps += int(str(first.notes["happened"]))
    counts.scheduler_steps += first.steps
    counts.operations += len(set(first.posted) - asked)
    counts.operations_answered_once += len(first.replies)
    counts.operations_refused += sum(not one.success for one in first.replies.values())
    counts.requests += len(asked)
    counts.requests_answered_once += len(first.finishes)


# -- On every rank --------------------------------------------------------------------------------------------


def random_run(seed: int, folder: str, dying: int, when: int) -> Record:
    """Play a run; rank ``dying`` dies in its step ``when``."""
    shape = random.Random(f"shape {seed}")
    clock = Clock()
    rank = make_rank(
        num_pages=shape.choice([12, 20, 40]),
        max_running=5,
        host_pages=shape.choice([0, 0, 24]),
        copier=LateCopier(),
        clock=clock,
    )
    trouble = Trouble(rank, random.Random(f"trouble {seed} {rank.number}"))
    rank.scheduler.step = trouble.step  # type: ignore[method-assign]
    if rank.number == dying:
        trouble.dies_at = when
    rank.record.notes["happened"] = 0
    record = rank.play(lambda rank: Operator(rank, clock, random.Random(seed), HashWeights(folder)).play())
    record.notes["faults"] = trouble.faults
    return record


class Trouble:
    """What goes wrong on one rank, and only there."""

    def __init__(self, rank: Rank, chance: random.Random) -> None:
        self._rank = rank
        self._chance = chance
        self._step = rank.scheduler.step
        self._armed = 0
        self.dies_at = 0

    @property
    def faults(self) -> int:
        """How many have come to pass."""
        left = sum(len(acts) for acts in self._rank.faults.armed.values()) + len(self._rank.runner.faults)
        return self._armed - left

    def step(self) -> Step:
        rank, chance = self._rank, self._chance
        if self.dies_at and rank.record.steps == self.dies_at:
            die()
        if "calm" in rank.record.replies:
            self._armed = self.faults
            rank.faults.clear()
            rank.runner.faults.clear()
        elif chance.random() < 0.1:
            self._armed += 1
            rank.faults.arm(chance.choice(POINTS), chance.choice(["fail", "fail", "run out of memory"]))
        elif chance.random() < 0.02:
            self._armed += 1
            kind = chance.choice([torch.OutOfMemoryError, RuntimeError])
            rank.runner.faults_after_writing = chance.random() < 0.5
            rank.runner.faults.append(kind("injected"))
        if rank.copier is not None and (chance.random() < 0.3 or "calm" in rank.record.replies):
            rank.copier.finish(chance.choice([1, 2, None]))
        return self._step()
