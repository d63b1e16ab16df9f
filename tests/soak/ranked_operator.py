"""Somebody who talks to rank 0 of an engine at random, and in the end puts everything right."""

from __future__ import annotations

import random
from pathlib import Path

import torch

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
from devicekit.scheduling.verbs.transaction import Settle, Transaction
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
from tests.hash_runner import make_weights
from tests.scheduling.ranked_world import Rank
from tests.scheduling.rig import Clock

_STEPS = 50  # things that happen in a run
_STEMS = [list(range(first, first + length)) for first, length in ((1, 21), (50, 9), (200, 34))]
LAST, PROMPT = make_weights(9), [5, 6, 7]


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
                UpdateWeightsFromTensor(self._id(), tensors=LAST, flush_cache=False),
                Continue(self._id()),
            ):
                rank.scheduler.post(operation)
            self._steps(20)
            self._clock.sleep(10.0)
        rank.do(ResumeMemory(self._id()))
        rank.do(EndWeightUpdate(self._id()))
        rank.do(UpdateWeightsFromTensor(self._id(), tensors=LAST, flush_cache=False))
        rank.do(Continue(self._id()))
        rank.request("after", PROMPT, 5)
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
