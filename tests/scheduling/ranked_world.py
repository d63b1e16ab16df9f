"""One rank of an engine in a test, and what is remembered of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch.distributed as dist

from devicekit.clock import Clock, SystemClock
from devicekit.device import get_device
from devicekit.memory.audit import audit
from devicekit.memory.host_kv import HostKVPool
from devicekit.release import ReleasePoint, ReleasePolicy
from devicekit.scheduling.kv_cache.host_cache import HostCacheManager, attach_host_cache
from devicekit.scheduling.messages import Operation, Output, Reply, Selector
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.ranks.scheduler import LockstepScheduler
from devicekit.scheduling.request import Finish, Request, SamplingParams
from devicekit.scheduling.scheduler import SchedulerLimits, Step
from devicekit.weights.install import WeightControl, install
from devicekit.weights.occupation import MemoryTag, Region
from devicekit.weights.store import Model, WeightStore
from tests.hash_runner import HashRunner, salt_of
from tests.scheduling.ranked_faults import Faults
from tests.scheduling.rig import LateCopier
from tests.scheduling.weight_files import FileLoader

HEARTBEAT = 0.1


class SkewedClock(SystemClock):
    """A machine whose clock is off, by ``skew`` seconds and more by ``rate``."""

    def __init__(self, skew: float, rate: float) -> None:
        self._skew = skew
        self._rate = rate
        self._started = super().now()

    def now(self) -> float:
        return self._started + self._skew + (super().now() - self._started) * self._rate


class Recorded(LockstepScheduler):
    """Keeps what came out of it."""

    record: Record
    look: Callable[[], dict[str, object]]  # at what must be the same on every rank

    def post(self, message: Request | Operation) -> None:
        super().post(message)
        self.record.posted.append(message.id)

    def step(self) -> Step:
        step = super().step()
        self.record.add(step)
        for reply in step.replies:
            self.record.left[reply.id] = self.look()
        return step


@dataclass
class Record:
    """Everything that one rank's scheduler answered, and what state it is in."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    finishes: dict[str, Finish] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    left: dict[str, dict[str, object]] = field(default_factory=dict)  # the state when that was answered
    posted: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)  # answered more than once
    steps: int = 0
    state: dict[str, object] = field(default_factory=dict)
    balanced: bool = True
    lost: tuple[str, tuple[int, ...]] | None = None
    seconds: float = 0.0
    notes: dict[str, object] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        self.steps += 1
        for output in step.outputs:
            self._add_output(output)
        for reply in step.replies:
            if reply.id in self.replies:
                self.twice.append(reply.id)
            self.replies[reply.id] = reply

    def _add_output(self, output: Output) -> None:
        if output.id in self.finishes:
            self.twice.append(output.id)
        self.tokens.setdefault(output.id, []).extend(output.tokens)
        if output.finish is not None:
            self.finishes[output.id] = output.finish

    def outcomes(self) -> dict[str, object]:
        """What has to be the same on every rank."""
        replies = {}
        for one in self.replies.values():
            told = [getattr(one, name, None) for name in ("outcome", "epoch", "failed", "ranks")]
            # Weights that hold no known value have another digest on every rank: only this one was asked for
            # when they did.
            digest = getattr(one, "total", None) if one.id == "sum" else None
            replies[one.id] = (one.success, one.message, one.refusal, *told, digest)
        finishes = {
            # Bytes that were free are each rank's own.
            name: (one.kind, one.matched, re.sub(r"\d{4,}", "#", one.message))
            for name, one in self.finishes.items()
        }
        return {
            "tokens": self.tokens,
            "finishes": finishes,
            "replies": replies,
            "left": self.left,
            "state": self.state,
        }


@dataclass
class Rank:
    """One rank of a scenario."""

    number: int
    size: int
    group: RankGroup
    scheduler: Recorded
    runner: HashRunner
    weights: WeightControl
    faults: Faults
    tier: HostCacheManager | None
    copier: LateCopier | None
    record: Record

    def request(self, identity: str, prompt: list[int], tokens: int = 6, **fields: object) -> None:
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0)
        self.scheduler.post(Request(identity, np.array(prompt, np.int32), params, **fields))  # type: ignore[arg-type]

    def do(self, operation: Operation, steps: int = 500) -> Reply:
        """On rank 0: post an operation and step until it is answered."""
        self.scheduler.post(operation)
        for _ in range(steps):
            if not self.scheduler.step().ran:
                self.scheduler.wait(0.002)
            if operation.id in self.record.replies:
                return self.record.replies[operation.id]
        raise AssertionError(f"{operation} was not answered")

    def run(self, *identities: str, steps: int = 500) -> None:
        """On rank 0: step until these requests have ended."""
        for _ in range(steps):
            if not self.scheduler.step().ran:
                self.scheduler.wait(0.002)  # weights may be read beside
            if all(one in self.record.finishes for one in identities):
                return
        raise AssertionError(f"not ended: {set(identities) - set(self.record.finishes)}")

    def play(self, script: Callable[[Rank], None]) -> Record:
        """Rank 0 plays a script, the others follow it; what came of it."""
        started = time.monotonic()
        if self.number == 0:
            try:
                script(self)
            except Exception as error:
                self.group.leave(f"the test failed: {error}")
                raise
            self.record.state = self.digest()
            self.scheduler.close()
        else:
            while not self.scheduler.closed and self.group.lost is None:
                self.record.state = self.digest()
                self.scheduler.step()
        if not self.scheduler.closed and self.group.lost is not None:
            self.scheduler.step()  # ends what is left
            self.record.lost = str(self.group.lost), self.group.lost.ranks
            self.record.state = {}
        self.record.seconds = time.monotonic() - started
        self.record.balanced = self.balanced()
        return self.record

    def digest(self) -> dict[str, object]:
        """Pools, prefix tree and control state, to be compared between ranks."""
        state = self.scheduler.state
        kv, tree = state.kv, blake2b(digest_size=8)
        assert kv.prefix is not None
        for one in sorted((node.key, node.pages, node.locks) for node in kv.prefix.nodes()):
            tree.update(repr(one).encode())
        return {
            "counts": (len(state.running), len(state.prefilling), len(state.waiting)),
            "released": sorted(one.value for one in self.weights.occupation.released),
            "free": blake2b(kv.pages.free_pages().tobytes(), digest_size=8).hexdigest(),
            "rows": kv.table.available,
            "tree": tree.hexdigest(),
            "requests": sorted(state.requests),
            "pause": (state.paused, state.gate.epoch),
            "weights": (state.weight_version, state.requests.weights_epoch, self.salt()),
            "source": getattr(self.runner, "source", None),
            "holds": sorted(state.gate.holds),
            "closed_by": sorted(state.gate.closed_by),
            "untrusted": sorted(name for _, name in self.weights.store.untrusted),
            "healthy": state.healthy,
        }

    def salt(self) -> int | None:
        """Of the weights; ``None`` while they hold no known value, or have no memory on some rank."""
        if self.weights.store.untrusted or MemoryTag.WEIGHTS in self.weights.occupation.released:
            return None
        return salt_of(self.runner.weights)

    def balanced(self) -> bool:
        state = self.scheduler.state
        for one in state.running.requests:
            state.running.settle(one)
        held = [one for one in state.requests.values() if one.row]
        own = [state.kv.table.pages[one.row, one.cached_pages : one.num_pages] for one in held]
        pages = np.concatenate(own) if own else np.empty(0, np.int32)
        return audit(state.kv.pages, owned=pages, cache=state.kv.prefix).balanced


def make_rank(
    *,
    timeout: float = 10.0,
    skew: float = 0.0,
    rate: float = 1.0,
    num_pages: int = 48,
    max_running: int = 6,
    host_pages: int = 0,
    copier: LateCopier | None = None,
    policies: dict[ReleasePoint, ReleasePolicy] | None = None,
    among: dist.ProcessGroup | None = None,
    checked: bool = True,
    clock: Clock | None = None,
    max_batch_tokens: int = 32,
    max_slowdown: float | None = None,
) -> Rank:
    device = get_device("cpu")
    group = RankGroup(among, timeout=timeout, heartbeat=HEARTBEAT, clock=clock or SkewedClock(skew, rate))
    runner = HashRunner(device, num_pages=num_pages, page_size=4)
    limits = SchedulerLimits(
        num_pages=num_pages,
        page_size=4,
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        max_slowdown=max_slowdown,
        checked=checked,
    )
    scheduler = Recorded(runner, device, limits, group, policies=policies)
    scheduler.record = record = Record()
    tier: HostCacheManager | None = None
    regions: dict[MemoryTag, Region] = {MemoryTag.KV_CACHE: runner.pool}
    if host_pages:
        tier = attach_host_cache(scheduler, HostKVPool(device, runner.pool, host_pages, copier=copier))
        regions[MemoryTag.HOST_KV] = tier
    faults = Faults()
    weights = install(
        scheduler.control,
        WeightStore(scheduler.state, device, Model(runner)),
        loaders={Selector.TARGET: FileLoader(runner, faults)},
        regions=regions,
        rank=group.rank,
    )
    faults.install(scheduler.control, scheduler.state, weights)
    rank = Rank(group.rank, group.size, group, scheduler, runner, weights, faults, tier, copier, record)
    scheduler.look = rank.digest
    return rank


def agree(records: list[Record]) -> Record:
    """Every rank must have come to the same end, with nothing lost; rank 0's record."""
    first = records[0]
    for rank, record in enumerate(records):
        assert record.lost is None, record.lost
        assert record.outcomes() == first.outcomes(), f"rank {rank} differs from rank 0"
        assert not record.twice, f"rank {rank} answered twice: {record.twice}"
        assert record.balanced, f"rank {rank} lost pages"
    return first
