"""Somebody who talks to rank 0 of an engine at random, and in the end puts everything right."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
LAST, PROMPT = 9, [5, 6, 7]
"""The seed of the weights that an engine has in the end, and what it is asked then."""


class Weights(Protocol):
    """New weights for an engine, by their seeds."""

    def tensors(self, seed: int) -> Mapping[str, torch.Tensor]:
        """By name."""
        ...

    def path(self, seed: int | str) -> str:
        """Where they are on disk, if the seed is a number; and nothing otherwise."""
        ...


@dataclass(frozen=True)
class HashWeights:
    """Of a `HashRunner`."""

    folder: str

    def tensors(self, seed: int) -> Mapping[str, torch.Tensor]:
        return make_weights(seed)

    def path(self, seed: int | str) -> str:
        return str(Path(self.folder, f"{seed}.safetensors"))


class Operator:
    """Whoever talks to rank 0, at random."""

    def __init__(self, rank: Rank, clock: Clock, chance: random.Random, weights: Weights) -> None:
        self._rank = rank
        self._clock = clock
        self._chance = chance
        self._weights = weights
        self.brought: dict[
            str, tuple[int, tuple[str, ...]]
        ] = {}  # by each update: of which seed, under which names
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
            righting = (
                ResumeMemory(self._id()),
                EndWeightUpdate(self._id()),
                self._last(),
                Continue(self._id()),
            )
            for operation in righting:
                rank.scheduler.post(operation)
            self._until_answered({one.id for one in righting})
            self._clock.sleep(10.0)
        rank.do(ResumeMemory(self._id()))
        rank.do(EndWeightUpdate(self._id()))
        rank.do(self._last())
        rank.do(Continue(self._id()))
        rank.request("after", PROMPT, 5)
        rank.run("after")
        rank.do(Flush("last", timeout=60.0))
        rank.do(ChecksumWeights("sum"))

    def _last(self) -> UpdateWeights:
        tensors = self._weights.tensors(LAST)
        identity = self._id()
        self.brought[identity] = LAST, tuple(tensors)
        return UpdateWeightsFromTensor(identity, tensors=tensors, flush_cache=False)

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
        weights = self._weights.tensors(seed)
        names = chance.sample(sorted(weights), min(len(weights), chance.choice((1, 2, 3, 3, 1000))))
        chosen = {name: weights[name] for name in names}
        self.brought[identity] = seed, tuple(names)
        if chance.random() < 0.1:
            chosen["nobody"] = torch.zeros(1)
        way = chance.randrange(4)
        if way == 0:
            self.brought[identity] = seed, tuple(weights)
            found: list[int | str] = [seed, seed, "missing"]
            path = self._weights.path(chance.choice(found))
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
        if update is not None:
            self.brought[identity] = self.brought.pop("part")
        flush, resume = chance.random() < 0.7, chance.random() < 0.7
        return Transaction(identity, chance.choice([*Settle]), update, flush, None, resume, timeout=3.0)

    def _id(self) -> str:
        return f"op{next(self._ids)}"

    def _until_answered(self, identities: set[str]) -> None:
        """Steps, until these operations are answered, or for so many: weights are read beside, in real time."""
        for _ in range(200):
            if identities <= self._rank.record.replies.keys():
                return
            if not self._rank.scheduler.step().ran:
                self._rank.scheduler.wait(0.002)

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self._rank.scheduler.step()
