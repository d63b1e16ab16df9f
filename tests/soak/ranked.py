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
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from devicekit.runners.hash_runner import expected, make_weights, salt_of
from devicekit.scheduling.messages import (
    Abort,
    Continue,
    Drain,
    Flush,
    Operation,
    Pause,
    PauseMode,
    UpdateWeights,
    UpdateWeightsFromDisk,
)
from devicekit.scheduling.scheduler import Step
from devicekit.scheduling.transaction import Settle, Transaction
from devicekit.weights.operations import (
    BeginWeightUpdate,
    ChecksumWeights,
    EndWeightUpdate,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromIPC,
    UpdateWeightsFromTensor,
    UpdateWeightVersion,
)
from tests.scheduling.processes import World
from tests.scheduling.ranked_faults import POINTS, die
from tests.scheduling.ranked_world import Rank, Record, agree, make_rank
from tests.scheduling.rig import Clock, LateCopier

_STEPS = 50  # things that happen in a run
_DEATH = 20  # one run in so many loses a rank
_STEMS = [list(range(first, first + length)) for first, length in ((1, 21), (50, 9), (200, 34))]
_LAST, _PROMPT = make_weights(9), [5, 6, 7]


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
    began = time.monotonic()
    world = World(ranks, forked=True)
    number = first_seed
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(3):
            save_file(make_weights(seed), Path(folder, f"{seed}.safetensors"))
        while time.monotonic() - began < seconds:
            try:
                _count(counts, *_play(world, number, folder))
            except Exception as error:  # told with its seed, and the soak goes on
                traceback.print_exc(file=sys.stderr)
                counts.violations.append({"seed": number, "error": f"{type(error).__name__}: {error}"[:500]})
                world.close()
                world = World(ranks, forked=True)
            number += 1
    world.close()
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


def _play(world: World, seed: int, folder: str) -> tuple[list[Record], int]:
    """One run; what came of it, and how many ranks it cost."""
    chance = random.Random(f"death {seed}")
    ranks = len(world.pipes)
    if chance.randrange(_DEATH):
        records = world.play(random_run, seed, folder, -1, 0)
        first = agree(records)
        assert first.replies["last"].success, first.replies["last"].message
        assert first.tokens["after"] == expected(_PROMPT, 5, salt_of(_LAST))
        return records, 0
    who = chance.randrange(ranks)
    records = world.play(random_run, seed, folder, who, chance.randint(2, 60), expect=str(who))
    world.replace(str(who))
    for record in records:
        assert record.lost is not None, "a rank's death was not noticed"
        assert record.lost[1] == (who,), record.lost
        assert record.balanced, "pages were lost"
        assert not record.twice, f"answered twice: {record.twice}"
        assert record.finishes.keys() >= record.tokens.keys(), "a request did not end"
    return records, 1


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
    record = rank.play(lambda rank: Operator(rank, clock, random.Random(seed), folder).play())
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


class Operator:
    """Whoever talks to rank 0, at random."""

    def __init__(self, rank: Rank, clock: Clock, chance: random.Random, folder: str) -> None:
        self._rank = rank
        self._clock = clock
        self._chance = chance
        self._folder = folder
        self._lent: list[object] = []  # tensors that others may still read
        self._ids = iter(range(1 << 30))

    def play(self) -> None:
        """Do things, then put everything right: all is answered, and the engine works."""
        rank, chance = self._rank, self._chance
        for _ in range(_STEPS):
            if rank.group.lost is not None:
                return
            rank.record.notes["happened"] = int(str(rank.record.notes["happened"])) + 1
            self._something_happens()
            self._steps(chance.choice((0, 1, 1, 3, 6)))
        rank.do(Flush("calm"))
        for _ in range(200):
            if not rank.scheduler.state.requests and not rank.scheduler.control.pending:
                break
            for operation in (
                ResumeMemory(self._id()),
                EndWeightUpdate(self._id()),
                UpdateWeightsFromTensor(self._id(), tensors=_LAST, flush_cache=False),
                Continue(self._id()),
            ):
                rank.scheduler.post(operation)
            self._steps(20)
            self._clock.sleep(10.0)
        rank.do(ResumeMemory(self._id()))
        rank.do(EndWeightUpdate(self._id()))
        rank.do(UpdateWeightsFromTensor(self._id(), tensors=_LAST, flush_cache=False))
        rank.do(Continue(self._id()))
        rank.request("after", _PROMPT, 5)
        rank.run("after")
        rank.do(Flush("last", timeout=60.0))
        rank.do(ChecksumWeights("sum"))

    def _something_happens(self) -> None:
        chance = self._chance
        if chance.random() < 0.3:
            self._requests_come()
        elif chance.random() < 0.15:
            self._clock.sleep(chance.choice([0.1, 1.0, 5.0, 100.0]))
        else:
            self._rank.scheduler.post(self._operation())

    def _requests_come(self) -> None:
        chance, state = self._chance, self._rank.scheduler.state
        for _ in range(chance.randint(1, 3) if len(state.requests) < 16 else 0):
            prompt = [*chance.choice(_STEMS), *range(300, 300 + chance.randrange(8))]
            if len(prompt) > state.kv.pages.num_pages * 4:
                continue
            timeout = chance.choice([None, None, None, 20.0])
            stream = chance.random() < 0.5
            self._rank.request(
                f"r{next(self._ids)}", prompt, chance.randint(1, 24), stream=stream, timeout=timeout
            )

    def _operation(self) -> Operation:
        chance, identity = self._chance, self._id()
        wish = chance.choice([None, True, False])
        tags = tuple(chance.sample(["weights", "kv_cache", "host_kv"], chance.randrange(3)))
        mode = chance.choice([PauseMode.ABORT, *[PauseMode.RETRACT, PauseMode.IN_PLACE] * 3])
        return chance.choice(
            [
                lambda: Flush(identity, chance.choice([None, 0.5, 30.0]), wish),
                lambda: Pause(identity, mode, chance.choice([None, None, 2.0])),
                lambda: Continue(identity, wish),
                lambda: Continue(identity, wish),
                lambda: Drain(identity, chance.choice([None, 1.0])),
                lambda: Abort(identity, prefix=f"r{chance.randint(1, 9)}"),
                lambda: self._update(identity),
                lambda: self._update(identity),
                lambda: chance.choice([BeginWeightUpdate, EndWeightUpdate, EndWeightUpdate])(identity),
                lambda: UpdateWeightVersion(identity, chance.choice(["", "a", "b"]), chance.random() < 0.2),
                lambda: ReleaseMemory(identity, tags, chance.random() < 0.5),
                lambda: ResumeMemory(identity, tags),
                lambda: ChecksumWeights(identity),
                lambda: self._transaction(identity),
            ]
        )()

    def _update(self, identity: str) -> UpdateWeights:
        chance = self._chance
        seed, flush = chance.randrange(3), chance.random() < 0.7
        weights = make_weights(seed)
        chosen = dict(chance.sample(sorted(weights.items()), chance.randint(1, 3)))
        if chance.random() < 0.1:
            chosen["nobody"] = torch.zeros(1)
        way = chance.randrange(4)
        if way == 0:
            path = str(Path(self._folder, f"{chance.choice([seed, seed, 'missing'])}.safetensors"))
            return UpdateWeightsFromDisk(identity, flush_cache=flush, path=path)
        if way == 1:
            device = self._rank.runner.device
            self._lent.append(chosen)
            handles = {name: device.export_ipc(one) for name, one in chosen.items()}
            return UpdateWeightsFromIPC(identity, flush_cache=flush, handles=handles)
        abort = chance.random() < 0.1
        return UpdateWeightsFromTensor(identity, flush_cache=flush, abort_all_requests=abort, tensors=chosen)

    def _transaction(self, identity: str) -> Transaction:
        chance = self._chance
        update = self._update("part") if chance.random() < 0.7 else None
        flush, resume = chance.random() < 0.7, chance.random() < 0.7
        return Transaction(identity, chance.choice([*Settle]), update, flush, None, resume, timeout=3.0)

    def _id(self) -> str:
        return f"op{next(self._ids)}"

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self._rank.scheduler.step()
