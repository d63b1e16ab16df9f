"""Random control sequences on one model that several ranks hold together, compared with the model as a whole.

As `tests.soak.ranked`, with a real model instead of a runner that hashes. Every request that lived under one set
of weights must have the tokens that a single process gives it with the same weights, however they came; every
checksum must be that of the whole. A rank that raises, runs out of memory, dies or stands still in the middle of
an exchange is the end of its engine, and the others must have answered everything and say which it was.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from devicekit.devtools.reference import write_model
from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.batch import ForwardBatch, StepOutput
from devicekit.scheduling.messages import Flush, FlushReply, Selector, Step, UpdateOutcome
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.request import SamplingParams
from devicekit.weights import ChecksumReply, ChecksumWeights, UpdateWeightsFromTensor
from tests.scheduling.processes import World
from tests.scheduling.ranked_faults import Faults, die
from tests.scheduling.ranked_world import HEARTBEAT, Rank, Record, Recorded, agree
from tests.scheduling.rig import Clock
from tests.soak.ranked import Counts, Played, Trouble, judge_lost, soak_ranks
from tests.soak.ranked_operator import LAST, Operator
from tests.tensor_parallel.models import MODELS
from tests.tensor_parallel.scenarios import Faulty

PATIENCE = 60.0  # seconds, the ranks' timeout: on a busy machine a rank comes late
SEEDS = (0, 1, 2, LAST)
KINDS = ("llama", "tied", "three key heads", "gemma3", "mixtral", "mixtral by experts")
_DEATH = 8  # one run in so many loses a rank
_ACTS = ("raise", "memory", "die", "die", "raise", "memory", "die", "stop")
_EXCHANGES = 400  # within which a rank is lost
_PAGE = 4  # tokens

Mixture = tuple[tuple[str, int], ...]
"""Of which seed each weight is, by name."""


@dataclass
class SplitCounts(Counts):
    """What has happened so far."""

    requests_compared: int = 0
    tokens_compared: int = 0
    checksums_compared: int = 0
    mixtures: int = 0  # sets of weights, of several seeds or one, under which something was compared
    acts: dict[str, int] = field(default_factory=dict)  # how ranks were lost


def run_split(ranks: int, seconds: float, first_seed: int) -> SplitCounts:
    """Random runs for so long, each of a seed of its own that repeats it."""
    counts = SplitCounts(ranks)
    with TemporaryDirectory() as folder:
        wholes = {kind: Whole(folder, kind) for kind in KINDS}
        soak_ranks(
            counts, seconds, first_seed, lambda world, seed: _play(world, seed, folder, counts, wholes)
        )
    return counts


def kind_of(seed: int, ranks: int) -> str:
    """Of which model a run is."""
    known = [one for one in KINDS if ranks == 2 or one != "three key heads"]
    return random.Random(f"kind {seed}").choice(known)


def _play(world: World, seed: int, folder: str, counts: SplitCounts, wholes: Mapping[str, Whole]) -> Played:
    chance, ranks = random.Random(f"death {seed}"), len(world.pipes)
    who, act, at = -1, "", 0
    if not chance.randrange(_DEATH):
        who, act, at = chance.randrange(ranks), chance.choice(_ACTS), chance.randint(1, _EXCHANGES)
    kind = kind_of(seed, ranks)
    until = Path(folder, f"given up {seed}")
    dies = act == "die"
    played = world.play(
        split_run, seed, folder, kind, who, act, at, str(until), expect=str(who) if dies else ""
    )
    if dies:
        world.replace(str(who))
    until.unlink(missing_ok=True)
    lost = any(record.lost is not None for record in played)
    if lost:
        assert act, played[0].lost
        judge_lost(played, who)
        counts.acts[act] = counts.acts.get(act, 0) + 1
    else:
        first = agree(played)
        if not (dies and who == 0):
            assert first.replies["last"].success, first.replies["last"].message
    for record in played:
        _compare(record, wholes[kind], counts)
    return played, int(lost and dies)


def _compare(record: Record, whole: Whole, counts: SplitCounts) -> None:
    said = cast("list[tuple[Mixture, list[int], list[int]]]", record.notes.get("said", []))
    sums = cast("list[tuple[Mixture, str]]", record.notes.get("sums", []))
    for mixture in {one[0] for one in said} | {one[0] for one in sums}:
        whole.become(mixture)
        counts.mixtures += 1
        for own, total in sums:
            if own == mixture:
                assert total == whole.total(), f"another checksum of {mixture}"
                counts.checksums_compared += 1
        mine = [(prompt, tokens) for own, prompt, tokens in said if own == mixture]
        for (prompt, tokens), expected in zip(mine, whole.says(mine), strict=True):
            assert tokens == expected, f"{prompt}: {tokens}, not {expected}"
            counts.requests_compared += 1
            counts.tokens_compared += len(tokens)


# -- Weights --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitWeights:
    """Of one of `KINDS`, in the folder where `Whole` has put them."""

    folder: str
    kind: str

    def tensors(self, seed: int) -> Mapping[str, torch.Tensor]:
        return _stored(f"{self.path(seed)}.safetensors")

    def path(self, seed: int | str) -> str:
        return str(Path(self.folder, self.kind.partition(" by ")[0], str(seed)))


@cache
def _stored(path: str) -> Mapping[str, torch.Tensor]:
    return load_file(path)


class Whole:
    """The same model in one process."""

    def __init__(self, folder: str, kind: str) -> None:
        self._weights = SplitWeights(folder, kind)
        architecture, settings = MODELS[kind.partition(" by ")[0]]
        config = EngineConfig(kv_tokens=8192)
        self._engine: Engine | None = None
        for seed in SEEDS:
            path = self._weights.path(seed)
            if not Path(path).exists():
                write_model(path, seed=seed, architecture=architecture, settings=settings)
            self._engine = Engine.open(path, "cpu", config=config)
            named = {name: one.detach() for name, one in self._engine.runner.named_weights()}
            save_file(named, f"{path}.safetensors")
        self._mixture: Mixture = ()

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def become(self, mixture: Mixture) -> None:
        """Have these weights."""
        tensors = {name: self._weights.tensors(seed)[name] for name, seed in mixture}
        done = self.engine.update_weights(
            UpdateWeightsFromTensor(f"become {random.random()}", tensors=tensors)
        )
        assert done.success, done.message

    def total(self) -> str:
        """The checksum of the weights."""
        return self.engine.perform(ChecksumWeights("sum"), ChecksumReply).total

    def says(self, asked: list[tuple[list[int], list[int]]]) -> list[list[int]]:
        """What comes behind each prompt, as many tokens as there are."""
        wanted = [(prompt, len(tokens)) for prompt, tokens in asked]
        engine = self.engine
        generations = [
            engine.submit(prompt, SamplingParams(max_new_tokens=count, temperature=0.0, ignore_eos=True))
            for prompt, count in wanted
        ]
        while not all(one.done for one in generations):
            engine.step()
        assert engine.perform(Flush("flush"), FlushReply).success
        return [list(one.tokens) for one in generations]


# -- On every rank --------------------------------------------------------------------------------------------


def split_run(seed: int, folder: str, kind: str, who: int, act: str, at: int, until: str) -> Record:
    """Play a run; at its exchange ``at`` rank ``who`` fails by ``act``, unless that is empty."""
    shape, clock = random.Random(f"shape {seed}"), Clock()
    ranks = RankGroup(timeout=PATIENCE, heartbeat=HEARTBEAT, clock=clock)
    config = EngineConfig(
        page_size=_PAGE,
        kv_tokens=shape.choice([12, 20, 40]) * _PAGE,
        host_kv_tokens=shape.choice([0, 0, 24]) * _PAGE,
        max_running=5,
        max_batch_tokens=32,
        checked=True,
        tensor_parallel=ranks.size,
        expert_parallel=kind.endswith("experts"),
    )
    weights = SplitWeights(folder, kind)
    engine = Engine.open(weights.path(0), "cpu", ranks=ranks, config=config)
    rank = make_split_rank(engine, ranks)
    trouble = Trouble(rank, random.Random(f"trouble {seed} {rank.number}"))
    rank.scheduler.step = trouble.step  # type: ignore[method-assign]
    fatal = None
    if rank.number == who:
        assert engine.runner.sharding is not None
        exchange = engine.runner.sharding.exchange
        fatal = engine.runner.sharding.exchange = Faulty(exchange, at, act, short=PATIENCE, until=until)
    rank.record.notes["happened"] = 0
    operator = Operator(rank, clock, random.Random(seed), weights)
    if rank.number == 0:
        Ledger(rank, operator, weights).follow()
    record = rank.play(lambda rank: operator.play())
    if act == "stop" and rank.number != who and record.lost is not None:
        Path(until).touch()
    if fatal is not None and act == "die":
        die()  # it was not asked for so many exchanges, and is expected to end
    record.notes["faults"] = trouble.faults
    return record


class SplitRank(Rank):
    """A rank whose weights are a part, and differ from everybody else's."""

    engine: Engine

    def salt(self) -> int | None:
        return None

    def balanced(self) -> bool:
        return self.engine.scheduler.audit().balanced


def make_split_rank(engine: Engine, ranks: RankGroup) -> SplitRank:
    """One rank of an engine, with faults where `Faults` has them, before a pass, and where files are read."""
    scheduler = cast("Recorded", engine.scheduler)
    scheduler.__class__ = Recorded  # as the engine made it, and keeping what comes out
    scheduler.record = record = Record()
    runner: Any = engine.runner
    runner.faults, runner.faults_after_writing = deque(), False
    unharmed = runner.prepare

    def prepare(batch: ForwardBatch) -> Callable[[], StepOutput]:
        if runner.faults:
            raise runner.faults.popleft()
        harmless: Callable[[], StepOutput] = unharmed(batch)
        return harmless

    runner.prepare = prepare
    faults = Faults()
    faults.install(scheduler.control, scheduler.state, engine.weights)
    engine.weights._loaders[Selector.TARGET] = _Loader(runner, faults)
    rank = SplitRank(
        ranks.rank, ranks.size, ranks, scheduler, runner, engine.weights, faults, None, None, record
    )
    rank.engine = engine
    scheduler.look = rank.digest
    return rank


@dataclass
class _Loader:
    """Reads checkpoints, with faults."""

    runner: Any
    faults: Faults

    def stage_from_disk(self, path: str, within: Sequence[str] = ()) -> Any:
        self.faults.at("stage")
        return _Read(self.runner.stage_from_disk(path, within), self.faults)


@dataclass
class _Read:
    staged: Any
    faults: Faults

    def write(self) -> Any:
        self.faults.at("write")
        written = self.staged.write()
        self.faults.at("written")
        return written

    def settle(self) -> None:
        self.staged.settle()


class Ledger:
    """On rank 0: which weights there are, and what was said under one set of them."""

    def __init__(self, rank: SplitRank, operator: Operator, weights: SplitWeights) -> None:
        self._rank = rank
        self._operator = operator
        self._mixture: dict[str, int | None] = dict.fromkeys(weights.tensors(0), 0)  # None: nobody knows
        self._asked: dict[str, tuple[list[int], int]] = {}  # prompts, and the epoch that they came in
        self._heard: set[str] = set()
        self._said: list[tuple[Mixture, list[int], list[int]]] = []
        self._sums: list[tuple[Mixture, str]] = []
        self._changes = self._before = 0  # of the weights: that were told of, and the epoch before the first

    def follow(self) -> None:
        """From now on."""
        rank = self._rank
        ask, step = rank.request, rank.scheduler.step

        def asking(identity: str, prompt: list[int], *rest: object, **more: object) -> None:
            self._asked[identity] = prompt, rank.scheduler.state.requests.weights_epoch
            ask(identity, prompt, *rest, **more)  # type: ignore[arg-type]

        def stepping() -> Step:
            done = step()
            self._learn()
            return done

        rank.request = asking  # type: ignore[method-assign, assignment]
        rank.scheduler.step = stepping  # type: ignore[method-assign]
        rank.record.notes |= {"said": self._said, "sums": self._sums}

    def _learn(self) -> None:
        record = self._rank.record
        new = [one for one in record.replies if one not in self._heard]
        self._heard.update(new)
        for identity in new:
            reply = record.replies[identity]
            outcome = getattr(reply, "outcome", None)
            seed, names = self._operator.brought.get(identity, (0, ()))
            known = outcome in (UpdateOutcome.UPDATED, UpdateOutcome.UPDATED_NOT_FLUSHED)
            if identity in self._operator.brought and (known or outcome is UpdateOutcome.PARTIAL):
                self._mixture |= dict.fromkeys(names, seed if known else None)
                self._changes += 1
        untrusted = self._rank.weights.store.untrusted
        self._mixture |= dict.fromkeys((name for _, name in untrusted), None)
        found = {name: seed for name, seed in self._mixture.items() if seed is not None}
        if len(found) < len(self._mixture) or self._rank.group.lost is not None or self._is_behind():
            new, found = [], {}  # nobody knows what these weights are
        mixture = tuple(sorted(found.items()))
        for identity in new if len(new) == 1 else ():  # otherwise another verb may have come in between
            reply = record.replies[identity]
            if isinstance(reply, ChecksumReply) and reply.success:
                self._sums.append((mixture, reply.total))
        self._listen(mixture)

    def _is_behind(self) -> bool:
        """Whether weights may have been written by what is not answered yet: a transaction that still flushes."""
        epoch = self._rank.scheduler.state.requests.weights_epoch
        if self._operator.brought.keys() <= self._rank.record.replies.keys() | {"part"}:
            self._before = epoch - self._changes
        return epoch - self._before != self._changes

    def _listen(self, mixture: Mixture) -> None:
        """Keep what was said by requests that lived under one set of weights; ``mixture``: known, or empty."""
        record, epoch = self._rank.record, self._rank.scheduler.state.requests.weights_epoch
        for identity in [one for one in self._asked if one in record.finishes]:
            prompt, came = self._asked.pop(identity)
            tokens = record.tokens[identity]
            if mixture and came == epoch and tokens and self._rank.group.lost is None:
                self._said.append((mixture, prompt, list(tokens)))
