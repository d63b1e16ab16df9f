"""Engines that answer a fleet's calls in memory, and a network that loses, delays, restarts and ends fleets.

What an engine does when it is claimed, held, prepared, committed and joined is the product's own code; only the
weights are a letter in place of tensors, and nothing is generated.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

from devicekit.coordination import SingleRank
from devicekit.fleet import Answer, Unreachable
from devicekit.scheduling.errors import Conflict, SchedulingError
from devicekit.scheduling.gate import AdmissionGate
from devicekit.scheduling.messages import Refusal, Reply, Selector, UpdateOutcome, UpdateReply
from devicekit.weights import (
    ClaimForFleet,
    CommitWeights,
    DiscardWeights,
    EndClaim,
    HoldForFleet,
    HoldMode,
    JoinFleet,
    PrepareWeights,
)
from devicekit.weights.membership import Membership
from devicekit.weights.prepared import PreparedUpdates

_T = TypeVar("_T")
CHECKPOINTS = {"/old": "a", "/new": "b", "/newer": "c"}  # path: what its weights are


class FleetKilled(BaseException):
    """The fleet process ends here."""


@dataclass
class World:
    """What all engines share: chance, and who serves what at this moment."""

    rng: random.Random
    loss: float = 0.0  # chance that a call, or its answer, is lost
    delay: float = 0.0  # chance that a call is given up, and arrives later
    twice: float = 0.0  # chance that a call arrives once more, later
    restart: float = 0.0  # chance that an engine starts anew before a call
    kill_at: int | None = None  # the call at which the fleet process ends
    calls: int = 0
    serving: Counter[str] = field(default_factory=Counter)  # engines that generate, by what their weights are
    most_versions: int = 0  # that served at one moment
    jumped: float = 0.0  # seconds by which every clock is ahead of what has really passed
    instances: itertools.count[int] = field(default_factory=itertools.count)
    happenings: list[tuple[int, Callable[[], Awaitable[None]]]] = field(default_factory=list)  # by call
    late: list[tuple[int, Callable[[], object]]] = field(default_factory=list)  # what arrives at which call
    engines: dict[str, SimEngine] = field(default_factory=dict)  # by name, as peers find them

    def later(self, arrive: Callable[[], object]) -> None:
        """Have something arrive up to some dozens of calls from now."""
        self.late.append((self.calls + self.rng.randrange(1, 60), arrive))

    async def happen(self) -> None:
        """Let happen what is due."""
        while due := [one for one in self.happenings if one[0] <= self.calls]:
            self.happenings.remove(due[0])
            await due[0][1]()

    def deliver(self) -> None:
        """Let arrive what is due."""
        due = [one for one in self.late if one[0] <= self.calls]
        if due:
            self.late = [one for one in self.late if one[0] > self.calls]
            self.rng.shuffle(due)
            for _, arrive in due:
                arrive()


class _Weights:
    """What the product's handlers see of the weights: a store and an updater at once."""

    refuse_nonfinite = False

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self.store = self
        self.requests = SimpleNamespace(holding_kv=0, retract=None)
        self.state = SimpleNamespace(
            gate=AdmissionGate(),
            clock=SimpleNamespace(now=lambda: engine.world.jumped),
            requests=self.requests,
            running=SimpleNamespace(requests=()),
            prefilling=(),
            blockers=tuple,
            withdrawals=SimpleNamespace(has=lambda operation: False),
            coordinator=SingleRank(),
            weight_version="v0",
        )

    weights_now = 0

    def require_mapped(self) -> None:
        """It always is."""

    def selected(self, selector: Selector) -> dict[Selector, None]:
        return {Selector.TARGET: None}

    def tensors(self, selector: Selector) -> dict[tuple[Selector, str], None]:
        return {(Selector.TARGET, "weight"): None}

    def stage_from_disk(self, path: str, within: Sequence[str] = ()) -> Any:
        if path not in CHECKPOINTS:
            raise FileNotFoundError(f"there is no {path}")
        if path in self._engine.lacks:
            raise FileNotFoundError(f"there is no {path} on this machine")
        return SimpleNamespace(path=path, weights=CHECKPOINTS[path], write=lambda: None)

    def fetch(self, operation: PrepareWeights) -> Any:
        """As the product reads a peer: whatever it gives is compared before it can be written."""
        peer = self._engine.world.engines[operation.peer]

        def take() -> Any:
            peer.asked += 1
            if peer.down or "/read_weights" in peer.refuses:
                raise Conflict(f"{operation.peer} gives no weights")
            if peer.version != operation.weight_version:
                raise Conflict(f"the weights there are {peer.version!r}")
            if (peer.gives or peer.weights) != operation.checksum:
                raise Conflict(f"{operation.peer} gave other weights")
            model = SimpleNamespace(path=self._engine.path, weights=peer.weights, write=lambda: None)
            return SimpleNamespace(models=[model], names=(), close=lambda: None)

        return SimpleNamespace(take=take, cancel=lambda: None)

    def require_room_for(self, selector: Selector) -> None:
        """There always is."""

    def turn(self, operation_id: str) -> Any:
        return nullcontext(lambda: True)

    def received(self, take: Callable[[], Any]) -> Generator[None, None, Any]:
        yield from ()
        return take()

    def ready(self, load: Callable[[], Any]) -> Generator[None, None, Any]:
        yield from ()
        staged = load()
        return SimpleNamespace(staged=staged, close=staged.close)

    def run_prepared(self, operation: CommitWeights, ready: Any) -> Generator[None, None, Reply]:
        yield from ()
        [model] = ready.staged.models
        weights = self._engine.lies or model.weights
        self.weights_now += 1
        self._engine.change(weights=weights, version=str(operation.weight_version), path=model.path)
        return UpdateReply(
            operation.id,
            True,
            outcome=UpdateOutcome.UPDATED,
            weight_version=str(operation.weight_version),
        )


class SimEngine:
    """One engine's control plane. It is started with ``--await-fleet``, or had the old weights from the start."""

    def __init__(self, name: str, world: World, *, waits: bool = False) -> None:
        self.name = name
        self.world = world
        self.down = False
        self.refuses: set[str] = set()  # paths that it answers with an error
        self.ignores: set[str] = set()  # paths that it says to have done, and has not
        self.lacks: set[str] = set()  # paths that its machine does not have
        self.gives: str | None = None  # what it gives others in place of its weights
        self.asked = 0  # times that others asked it for its weights
        world.engines[name] = self
        self.lies: str | None = None  # what its weights become in place of what it was told to load
        self.dies_at: int | None = None  # the world's call at which it ends
        self.pace = 3  # how many others may come first, at most
        self.comes_back = False  # at once, with its first weights
        self.named = True  # where clients look for engines
        self.astray = False  # it went on unnamed, and serves what it served then until the fleet has looked
        self.endless = False  # what runs there never comes to its end
        self.kind: dict[str, object] = {}  # of /server_info, where it is unlike the others
        self._start(waits)

    def _start(self, waits: bool) -> None:
        self.instance = f"instance {next(self.world.instances)}"
        self.weights, self.path = "a", "/old"
        self.paused = False
        self._weights = _Weights(self)
        real: Any = self._weights  # in place of a store and an updater
        self.membership = Membership(real)
        self._prepared = PreparedUpdates(real, {Selector.TARGET: real}, self.membership, self._weights.fetch)
        if waits:
            self.membership.wait_for_fleet()
        self._note(+1)

    @property
    def version(self) -> str:
        return str(self._weights.state.weight_version)

    @version.setter
    def version(self, version: str) -> None:
        self._weights.state.weight_version = version

    @property
    def waits(self) -> bool:
        return self.membership.waiting

    @property
    def prepared(self) -> str | None:
        return self._prepared.update_id

    @property
    def serves(self) -> bool:
        return not (self.paused or self.waits or self.down)

    @property
    def counted(self) -> bool:
        """Whether it serves clients, and the fleet had to see to it."""
        return self.serves and self.named and not self.astray

    def _note(self, sign: int) -> None:
        world = self.world
        self.astray = self.astray and self.serves
        if self.counted:
            world.serving[self.weights] += sign
            world.most_versions = max(world.most_versions, len(+world.serving))

    def change(self, **values: object) -> None:
        """Set attributes, and keep the count of who serves what."""

        def work() -> None:
            for name, value in values.items():
                setattr(self, name, value)

        self._counted(work)

    def _counted(self, work: Callable[[], _T]) -> _T:
        self.world.serving[self.weights] -= self.counted
        try:
            return work()
        finally:
            self._note(+1)

    def restart(self) -> None:
        self._note(-1)
        self.down = False
        self._start(waits=True)

    async def close(self) -> None:
        """There is no connection."""

    async def call(
        self, path: str, body: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Answer:
        world, chance = self.world, self.world.rng.random
        world.calls += 1
        if world.kill_at is not None and world.calls >= world.kill_at:
            raise FleetKilled
        try:
            for _ in range(world.rng.randrange(self.pace)):
                await asyncio.sleep(0)
        except asyncio.CancelledError:  # whoever asked is gone; it is on its way
            if world.delay:
                world.later(lambda: self.answer(path, dict(body or {})))
            raise
        await world.happen()
        world.deliver()
        if self.dies_at is not None and world.calls >= self.dies_at:
            self.dies_at = None
            self.change(down=True)
            if self.comes_back:
                self.restart()
        if chance() < world.restart:
            self.restart()
        if self.down or chance() < world.loss:
            raise Unreachable("lost on the way")
        if chance() < world.delay:
            world.later(lambda: self.answer(path, dict(body or {})))
            raise Unreachable("not answered in time")
        answer = self.answer(path, dict(body or {}))
        if chance() < world.twice:
            world.later(lambda: self.answer(path, dict(body or {})))
        if chance() < world.loss:
            raise Unreachable("the answer was lost")
        return answer

    def answer(self, path: str, body: dict[str, object]) -> Answer:
        """What the engine does when a call arrives."""
        path = path.partition("?")[0]
        if "*" in self.refuses:
            return Answer(401, {"success": False, "message": "another key is needed here"})
        if path in self.refuses:
            return Answer(400, {"success": False, "message": f"{path} is refused here"})
        if path in self.ignores:
            return Answer(200, {"success": True, "outcome": "updated"})
        if path == "/server_info":
            return Answer(200, self._info())
        if path == "/weights_checker":
            said = {"success": True, "per_engine_checksum": self.weights, "weight_version": self.version}
            return Answer(200, said)
        if path in ("/pause_generation", "/continue_generation", "/drain"):
            self.change(paused=path != "/continue_generation")
            return Answer(200, {"status": "ok"})
        if path in ("/flush_cache", "/ping"):
            return Answer(200, {"success": True})
        reply = self._perform(path, body)
        document = {**asdict(reply), "success": reply.success, "message": reply.message}
        document["instance"] = self.instance
        document["awaits_fleet"] = document.pop("waiting", None)
        return Answer(200 if reply.success else 409 if reply.refusal is Refusal.CONFLICT else 400, document)

    def _info(self) -> dict[str, object]:
        return {
            "instance": self.instance,
            "weight_version": self.version,
            "status": "paused" if self.paused or self.waits else "ok",
            "awaits_fleet": self.waits,
            "await_fleet": True,
            "steered_by": self.membership.steered_by,
            "prepared_update": self.prepared,
            "model_path": self.path,
            **self.kind,
        }

    def _perform(self, path: str, body: dict[str, object]) -> Reply:
        def text(name: str) -> str:
            return str(body.get(name, ""))

        lease, update = text("lease"), text("update_id")
        seconds = None if body.get("timeout") is None else float(text("timeout"))
        number = f"lease {self.instance} {next(self.world.instances)}"
        handlers: dict[str, Callable[[], Reply | Callable[[], Reply | None]]] = {
            "/claim_for_fleet": lambda: self.membership.claim(
                ClaimForFleet(
                    "",
                    text("fleet"),
                    text("steered_by"),
                    number,
                    body.get("take_over") is True,
                    text("holder"),
                    body.get("again") is True,
                )
            ),
            "/end_fleet_claim": lambda: self.membership.end_claim(EndClaim("", lease)),
            "/hold_for_fleet": lambda: self.membership.hold(
                HoldForFleet("", HoldMode(text("mode")), seconds, lease)
            ),
            "/join_fleet": lambda: self.membership.join(JoinFleet("", text("weight_version"), lease=lease)),
            "/prepare_weight_update": lambda: self._prepared.prepare(
                PrepareWeights(
                    "",
                    update,
                    text("model_path"),
                    lease=lease,
                    peer=text("peer"),
                    weight_version=text("weight_version"),
                    checksum=text("checksum"),
                )
            ),
            "/commit_weight_update": lambda: self._prepared.commit(
                CommitWeights("", weight_version=text("weight_version"), update_id=update, lease=lease)
            ),
            "/discard_weight_update": lambda: self._prepared.discard(DiscardWeights("", update, lease)),
        }

        def work() -> Reply:
            done = handlers[path]()
            if isinstance(done, Reply):
                return done
            requests = self._weights.requests
            requests.holding_kv = self.world.rng.randrange(3) + self.endless
            while (reply := done()) is None:  # what runs comes to its end, or an hour passes
                requests.holding_kv -= not self.endless
                self.world.jumped += 3600 * self.endless
            requests.holding_kv = 0
            return reply

        try:
            return work() if path == "/commit_weight_update" else self._counted(work)
        except SchedulingError as error:
            return Reply("", False, str(error), refusal=Refusal.CONFLICT)
        except FileNotFoundError as error:
            return Reply("", False, str(error), refusal=Refusal.FAILED)
