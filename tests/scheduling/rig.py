"""A scheduler over a hashing runner, and a clock that only tests move."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from devicekit.contract.handles import Stream
from devicekit.coordination import Coordinator
from devicekit.device import Device
from devicekit.memory.audit import audit
from devicekit.memory.copies import Copier
from devicekit.memory.host_kv import HostKVPool
from devicekit.release import ReleasePoints
from devicekit.scheduling.kv_cache.host_cache import HostCacheManager, attach_host_cache
from devicekit.scheduling.messages import Operation, Output, Reply
from devicekit.scheduling.request import Finish, Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits, Step
from devicekit.scheduling.state import Participant
from devicekit.weights.install import WeightControl, install
from devicekit.weights.occupation import MemoryTag, Region
from devicekit.weights.prepared import FetchPeer
from devicekit.weights.store import Model, WeightStore
from tests.hash_runner import HashRunner, salt_of

_R = TypeVar("_R", bound=Reply)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class Work:
    """A participant with work that ends when the test says so."""

    name: str = "copies"
    unfinished: int = 0
    finished: int = 0
    flushes: int = 0
    retired: int = 0

    def participant(self) -> Participant:
        return Participant(self.name, self._flush, lambda: self.unfinished + self.finished, self._retire)

    def finish(self) -> None:
        """The work is done, but nobody has collected it yet."""
        self.finished, self.unfinished = self.unfinished, 0

    def _flush(self) -> None:
        self.flushes += 1

    def _retire(self) -> None:
        self.retired += self.finished
        self.finished = 0


class LateEvent:
    """Becomes true when the test says so, or when somebody waits for it."""

    def __init__(self, copier: LateCopier) -> None:
        self._copier = copier
        self.happened = False

    def record(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        self._copier.finish()

    def wait(self, stream: Stream | None = None) -> None: ...


class LateCopier:
    """Copies as late as it may: memory that is reused too early shows.

    What computation must find runs at once, behind everything that was begun before; the rest waits for `finish`.
    """

    overlaps = False  # host memory need not be page-locked for this
    reason = "a test"

    def __init__(self) -> None:
        self._begun: list[tuple[Callable[[], None], LateEvent]] = []
        self._unreported: list[LateEvent] = []

    def begin(self, work: Callable[[], None], *, blocks: bool) -> LateEvent:
        event = self.event()
        self._begun.append((work, event))
        if blocks:
            self._run()
        return event

    def event(self) -> LateEvent:
        return LateEvent(self)

    def finish(self, count: int | None = None) -> None:
        """Run what was begun, and report the oldest ``count`` copies, or all, as done."""
        self._run()
        done = self._unreported[:count]
        del self._unreported[: len(done)]
        for event in done:
            event.happened = True

    def _run(self) -> None:
        for work, event in self._begun:
            work()
            self._unreported.append(event)
        self._begun.clear()


@dataclass
class Rig:
    """A scheduler, what it runs on, and everything that came out of it so far."""

    scheduler: Scheduler
    runner: HashRunner
    clock: Clock
    releases: ReleasePoints
    weights: WeightControl
    draft: HashRunner | None = None
    tier: HostCacheManager | None = None
    outputs: dict[str, list[int]] = field(default_factory=dict)
    finishes: dict[str, Finish] = field(default_factory=dict)
    last: dict[str, Output] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    _ids: int = 0

    @property
    def salt(self) -> int:
        return salt_of(self.runner.weights)

    def add(self, prompt: Iterable[int], tokens: int = 8, *, id: str = "", **fields: object) -> str:
        """Add a greedy request; its id."""
        self._ids += 1
        identity = id or f"r{self._ids}"
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0)
        self.scheduler.add(Request(identity, np.array(list(prompt), np.int32), params, **fields))  # type: ignore[arg-type]
        return identity

    def post(self, operation: Operation) -> None:
        self.scheduler.post(operation)

    def step(self, count: int = 1) -> Step:
        """Take steps; every answer and every end may come only once, and an answer says one thing."""
        step = Step((), ())
        for _ in range(count):
            step = self.scheduler.step()
            for output in step.outputs:
                assert output.id not in self.finishes, "tokens after the end"
                self.outputs.setdefault(output.id, []).extend(output.tokens)
                self.last[output.id] = output
                if output.finish is not None:
                    self.finishes[output.id] = output.finish
            for reply in step.replies:
                assert reply.id not in self.replies, "answered twice"
                assert reply.success == (reply.refusal is None), "done and refused at once, or neither"
                self.replies[reply.id] = reply
        return step

    def do(self, operation: Operation, kind: type[_R], steps: int = 200) -> _R:
        """Post an operation and step until it is answered, with a reply of this kind."""
        self.post(operation)
        for _ in range(steps):
            self.step()
            if operation.id in self.replies:
                reply = self.replies[operation.id]
                assert isinstance(reply, kind) or (kind is not Reply and type(reply) is Reply), reply
                return reply  # type: ignore[return-value]  # a refusal may come as a plain Reply
        raise AssertionError(f"{operation} was not answered within {steps} steps")

    def run(self, steps: int = 2000) -> None:
        """Step until no request is left."""
        for _ in range(steps):
            if not self.scheduler.state.requests:
                return
            self.step()
        raise AssertionError(f"still in flight: {list(self.scheduler.state.requests)}")

    def progress(self, identity: str) -> tuple[int, list[int]]:
        """Of a running request: tokens whose entries are in the pool, and its output so far."""
        state = self.scheduler.state
        request = state.requests[identity]
        state.running.settle(request)
        known = state.kv.table.tokens[request.row, len(request.prompt) : request.total]
        return request.computed, known.tolist()

    def check(self) -> None:
        """Every page and every row has exactly one owner."""
        kv = self.scheduler.state.kv
        for one in self.scheduler.state.running.requests:
            self.scheduler.state.running.settle(one)
        held = [request for request in self.scheduler.state.requests.values() if request.row]
        own = [kv.table.pages[one.row, one.cached_pages : one.num_pages] for one in held]
        pages = np.concatenate(own) if own else np.empty(0, np.int32)
        accounts = audit(kv.pages, owned=pages, cache=kv.prefix)
        assert accounts.balanced, accounts
        rows = audit(kv.table.rows, owned=np.array([one.row for one in held], np.int32))
        assert rows.balanced, rows
        if self.tier is not None:
            host = audit(self.tier.pool.pages, cache=self.tier.tree)
            assert host.balanced, host

    def snapshot(self) -> dict[str, object]:
        """What an observer can see of the scheduler: must be equal around anything that was refused."""
        state = self.scheduler.state
        kv = state.kv
        return {
            "available": kv.pages.available,
            "rows": kv.table.available,
            "cached": kv.prefix.total if kv.prefix else 0,
            "running": [(one.id, one.total) for one in state.running.requests],
            "prefilling": [(one.id, one.computed) for one in state.prefilling],
            "waiting": [one.id for one in state.waiting],
            "paused": (state.paused, state.gate.epoch),
            "weights": (state.weight_version, self.salt),
            "emptied": {point: counter.emptied for point, counter in self.releases.counters.items()},
        }


def make_rig(
    device: Device,
    *,
    num_pages: int = 64,
    page_size: int = 4,
    max_running: int = 8,
    max_batch_tokens: int = 64,
    prefix_caching: bool = True,
    eos: frozenset[int] = frozenset(),
    draft: bool = False,
    host_pages: int = 0,
    copier: Copier | None = None,
    fetch: FetchPeer | None = None,
    coordinator: Coordinator | None = None,
) -> Rig:
    clock = Clock()
    runner = HashRunner(device, num_pages=num_pages, page_size=page_size, eos_token_ids=eos)
    limits = SchedulerLimits(
        num_pages=num_pages,
        page_size=page_size,
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        prefix_caching=prefix_caching,
        checked=True,
    )
    releases = ReleasePoints(device, clock=clock)
    scheduler = Scheduler(runner, device, limits, clock=clock, releases=releases, coordinator=coordinator)
    second = HashRunner(device, num_pages=1, page_size=page_size, seed=9) if draft else None
    store = WeightStore(
        scheduler.state,
        device,
        Model(runner, {"tied.weight": "embed.weight"}),
        None if second is None else Model(second),
    )
    regions: dict[MemoryTag, Region] = {MemoryTag.KV_CACHE: runner.pool}
    tier = None
    if host_pages:
        tier = attach_host_cache(scheduler, HostKVPool(device, runner.pool, host_pages, copier=copier))
        regions[MemoryTag.HOST_KV] = tier
    weights = install(scheduler.control, store, regions=regions, fetch=fetch)
    return Rig(scheduler, runner, clock, releases, weights, second, tier)
