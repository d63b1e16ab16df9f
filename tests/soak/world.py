"""An engine of random make, everything that was asked of it, and everything that came out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from devicekit.contract.errors import DeviceKitError
from devicekit.device import Device, get_device
from devicekit.memory.pages import PageAllocator
from devicekit.registry import unregister_backend
from devicekit.release import ReleasePoints
from devicekit.scheduling.kv_cache.host_cache import HostCacheManager, attach_host_cache
from devicekit.scheduling.messages import Operation, Reply, Selector
from devicekit.scheduling.request import Request
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from devicekit.testing import Fault, LoseDevice, SimConfig, Simulator, simulation
from devicekit.testing.sim_backend import register
from devicekit.weights.install import WeightControl, install
from devicekit.weights.occupation import MemoryTag, Region
from devicekit.weights.operations import PrepareWeights
from devicekit.weights.store import Model, WeightStore
from tests.hash_runner import HashRunner, make_weights
from tests.scheduling.rig import Clock
from tests.soak import parts
from tests.soak.drawing import Draw
from tests.soak.make import Make
from tests.soak.shadow import Book, ShadowRunner, may_run

ALIASES = {"tied.weight": "embed.weight"}
TARGET_SEED, DRAFT_SEED, ANY = 0, 9, -1


@dataclass(slots=True)
class Posted:
    """An operation that waits for its answer."""

    operation: Operation
    at: float
    flushes: int  # that the engine had seen when it was posted
    noted: int  # changes to the weights that answers had told of by then
    taken: bool = False  # a step has begun since


class Detokenizer:
    """A letter a token."""

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, spaces: bool = True) -> str:
        return "".join(chr(97 + token % 26) for token in tokens)


class KnownBytes(Detokenizer):
    """The same, and each token's bytes are known: a `Vocabulary`."""

    byte_level = knows_bytes = True

    def is_hidden(self, token: int, skip_special_tokens: bool) -> bool:
        return False

    def raw_bytes(self, token: int) -> bytes:
        return bytes([97 + token % 26])

    token_bytes = raw_bytes

    def stream(self, context: Sequence[int], skip_special_tokens: bool) -> None:
        return None


class World:
    """Builds an engine, and has it stepped and listened to. What is amiss is in `wrong`."""

    def __init__(self, draw: Draw) -> None:
        self.make = make = Make.of(draw)
        self.draw = draw
        self._stack, self._faults = ExitStack(), ExitStack()
        self.machine: Simulator | None = None
        self.device = self._open()
        self.clock = Clock()
        self.runner = ShadowRunner(
            self.device,
            num_pages=make.pages,
            page_size=make.page_size,
            eos_token_ids=make.eos,
            max_positions=make.positions,
            window=make.window,
            partial_window=make.partial,
        )
        self.copy_script: list[bool] = []  # which of the coming copies into a weight fail
        self.draft = (
            HashRunner(self.device, num_pages=1, page_size=4, seed=DRAFT_SEED) if make.draft else None
        )
        self._make_stubborn()
        self.releases = ReleasePoints(self.device, make.policies, clock=self.clock)
        self.states = PageAllocator(make.max_running, checked=make.checked) if make.recurrent else None
        self.scheduler = self._schedule()
        self.state = self.runner.state = self.scheduler.state
        self.region = parts.Region()
        self.copier: parts.FaultyCopier | None = None
        self.host: parts.WatchedHostKVPool | None = None
        self.tier: HostCacheManager | None = None
        self.fetches: list[parts.Fetch] = []  # of weights of peers
        self.control = self._install()
        self.work = parts.Compilations(self._look_at_flush)
        self.scheduler.register(self.work.participant())
        self._begin_records()

    def _begin_records(self) -> None:
        """What was asked, and what the weights should be: the answers are held against it."""
        self.books = self.runner.books
        self.wrong = self.runner.wrong
        self.seen = self.runner.seen  # how often what happened
        self.posted: dict[str, Posted] = {}
        self.begun: list[Operation] = []  # between two steps, since the last one
        self.polls: dict[str, Callable[[], Reply | None]] = {}  # of those that are not answered yet
        self.kept: dict[str, object] = {}  # by operation: what has to live until it is answered
        self.session = False  # whether a weight update was begun and not ended
        self.transacting = False  # whether several transactions were there when the step began
        self.arriving: set[str] = set()  # requests that the step takes in
        self.sent: set[str] = set()  # requests that were posted and not yet taken in
        self.steps = self.asked = self.operations = self.entries = 0
        self.lost = False
        # What the weights should be: the seed each was made from; None: nobody can know;
        # ANY: somebody can, and not this side of the answers.
        self.truth: dict[tuple[Selector, str], int | None] = {
            (kind, name): seed
            for kind, seed in ((Selector.TARGET, TARGET_SEED), (Selector.DRAFT, DRAFT_SEED))
            for name in make_weights(0)
            if kind is Selector.TARGET or self.make.draft
        }
        # The last update that was committed, and what the weights were then.
        self.committed: tuple[str, int, str | None] | None = None
        self.commit_unknown = False  # whether nobody can know if the weights are still what they were then
        self.content: dict[str, dict[str, int]] = {}  # by operation: the weights it brings, by seed
        self.prepared: dict[str, dict[str, int]] = {}  # by its name: an update that waits to be committed
        self.version: str | None = self.state.weight_version
        self.noted = 0  # answers that told of new weights, or a new name
        self.changes = 0  # of weights, as far as answers told of them

    # -- Made of --------------------------------------------------------------------------------------------------

    def _open(self) -> Device:
        if not self.make.simulated:
            return get_device("cpu")
        self.machine = self._stack.enter_context(simulation(SimConfig()))
        register()
        self._stack.callback(unregister_backend, "sim")
        return get_device("sim")

    def _schedule(self) -> Scheduler:
        make = self.make
        limits = SchedulerLimits(
            num_pages=make.pages,
            page_size=make.page_size,
            max_running=make.max_running,
            max_batch_tokens=make.max_batch_tokens,
            max_slowdown=2.0 if make.policy == "priority" else None,
            policy=make.policy,
            prefix_caching=make.caching,
            conservativeness=make.conservativeness,
            window_pages=make.window_pages,
            state_snapshots=make.snapshots,
            checked=make.checked,
        )
        return Scheduler(
            self.runner,
            self.device,
            limits,
            clock=self.clock,
            releases=self.releases,
            detokenizer=KnownBytes() if make.known_bytes else Detokenizer(),
            states=self.states,
        )

    def _make_stubborn(self) -> None:
        if self.machine is not None:
            return  # there, copies fail by the machine's own faults
        for runner in (self.runner, self.draft):
            if runner is not None:
                for name, weight in runner.weights.items():
                    runner.weights[name] = parts.Stubborn.of(weight, self.copy_script, self._look_at_write)

    def _install(self) -> WeightControl:
        make = self.make
        regions: dict[MemoryTag, Region] = {
            MemoryTag.KV_CACHE: self.runner.pool,
            MemoryTag.GRAPHS: self.region,
        }
        if make.host:
            if make.late and self.machine is None:
                self.copier = parts.FaultyCopier()
            self.host = parts.WatchedHostKVPool(self.device, self.runner.pool, make.host, copier=self.copier)
            self.tier = attach_host_cache(self.scheduler, self.host)
            regions[MemoryTag.HOST_KV] = self.tier
        target = Model(self.runner, ALIASES)
        draft = None if self.draft is None else Model(self.draft)
        store = WeightStore(self.state, self.device, target, draft)
        if not make.rollback:
            store.rollback_bytes = 0
        loaders = {Selector.TARGET: parts.Checkpoints(self.runner.weights)}

        def fetch(operation: PrepareWeights) -> parts.Fetch:
            self.fetches.append(parts.Fetch(store, int(operation.peer.removeprefix("peer"))))
            return self.fetches[-1]

        return install(self.scheduler.control, store, loaders=loaders, regions=regions, fetch=fetch)

    def close(self) -> None:
        self.calm_down()
        self._stack.close()

    # -- Asked ----------------------------------------------------------------------------------------------------

    def ask(self, request: Request, *, sound: bool, post: bool) -> None:
        """Add a request, which can run or cannot."""
        timeout = request.timeout
        sound = sound and self.state.healthy
        book = Book(
            request,
            len(request.prompt),
            request.params,
            request.stream,
            None if timeout is None else self.clock.now() + timeout,
            sound,
            request.prompt.tolist(),
        )
        if post:
            self.books[request.id] = book
            self.sent.add(request.id)
            self.asked += 1
            self.scheduler.post(request)
            return
        try:
            self.scheduler.add(request)
        except DeviceKitError as error:
            if sound:
                self.wrong.append(f"{request.id} was refused: {error}")
            self.seen["requests_refused"] += 1
            return
        if not sound:
            self.wrong.append(f"{request.id} should have been refused")
        self.books[request.id] = book
        self.asked += 1

    def post(self, operation: Operation) -> None:
        self.posted[operation.id] = Posted(operation, self.clock.now(), self.work.flushes, self.noted)
        self.operations += 1
        self.scheduler.post(operation)

    # -- Whatever may be looked at --------------------------------------------------------------------------------

    @property
    def in_flight(self) -> list[Book]:
        return [book for book in self.books.values() if book.finish is None]

    @property
    def calm(self) -> bool:
        """Whether the device may be looked at without running into faults of our own making."""
        return not self.lost and (self.machine is None or not self.machine.scripted)

    def _look_at_flush(self) -> None:
        """A flush is under way: whatever was there must be gone, and nothing may have been in its way."""
        state, kv = self.state, self.state.kv
        waiting = len(state.waiting) if may_run(state) and not state.gate.closed_by else 0
        there = {
            "running": len(state.running),
            "prefilling": len(state.prefilling),
            "waiting": waiting,
            "compilations": self.work.unfinished + self.work.finished,
            "copies": 0 if self.tier is None else len(self.tier.copies),
            **{name: pool.in_use for name, pool in kv.pools().items()},
            "cached": 0 if kv.prefix is None else kv.prefix.total,
            "cached on the host": 0 if self.tier is None else self.tier.tree.total,
        }
        if left := {name: count for name, count in there.items() if count}:
            self.wrong.append(f"flushed in spite of, or without, {left}")

    def _look_at_write(self) -> None:
        """A weight is being written: nobody may be in the middle of using it."""
        holders = len(self.state.running) + len(self.state.prefilling)
        if holders and not self.state.paused:
            self.wrong.append(f"weights are written under {holders} requests that are at work")

    # -- Faults of the simulated machine --------------------------------------------------------------------------

    def inject(self, *faults: Fault) -> None:
        """Have the simulated machine fail, until it is calmed down; a device that may be lost stays so."""
        if self.machine is not None:
            losing = any(isinstance(fault.effect, LoseDevice) for fault in faults)
            (self._stack if losing else self._faults).enter_context(self.machine.inject(*faults))
            self.lost |= losing

    def calm_down(self) -> None:
        """No faults from here on."""
        self._faults.close()
