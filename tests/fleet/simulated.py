"""Engines that answer a fleet's calls in memory, and a network that loses, delays, restarts and ends fleets."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from devicekit.fleet import Answer, Unreachable

CHECKPOINTS = {"/old": "a", "/new": "b", "/newer": "c"}  # path: what its weights are


class FleetKilled(BaseException):
    """The fleet process ends here."""


@dataclass
class World:
    """What all engines share: chance, and who serves what at this moment."""

    rng: random.Random
    loss: float = 0.0  # chance that a call, or its answer, is lost
    restart: float = 0.0  # chance that an engine starts anew before a call
    kill_at: int | None = None  # the call at which the fleet process ends
    calls: int = 0
    serving: Counter[str] = field(default_factory=Counter)  # engines that generate, by what their weights are
    most_versions: int = 0  # that served at one moment
    instances: itertools.count[int] = field(default_factory=itertools.count)


class SimEngine:
    """One engine's control plane. It is started with ``--await-fleet``, or had the old weights from the start."""

    def __init__(self, name: str, world: World, *, waits: bool = False) -> None:
        self.name = name
        self.world = world
        self.down = False
        self.refuses: set[str] = set()  # paths that it answers with an error
        self.lies: str | None = None  # what its weights become in place of what it was told to load
        self._start(waits)

    def _start(self, waits: bool) -> None:
        self.instance = f"instance {next(self.world.instances)}"
        self.version, self.weights, self.path = "v0", "a", "/old"
        self.paused, self.waits = False, waits
        self.prepared: tuple[str, str] | None = None
        self.committed: str | None = None
        self._note(+1)

    def _note(self, sign: int) -> None:
        world = self.world
        if self.serves:
            world.serving[self.weights] += sign
            world.most_versions = max(world.most_versions, len(+world.serving))

    @property
    def serves(self) -> bool:
        return not (self.paused or self.waits or self.down)

    def change(self, **values: object) -> None:
        """Set attributes, and keep the count of who serves what."""
        self._note(-1)
        for name, value in values.items():
            setattr(self, name, value)
        self._note(+1)

    def restart(self) -> None:
        self._note(-1)
        self.down = False
        self._start(waits=True)

    async def call(
        self, path: str, body: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Answer:
        world = self.world
        world.calls += 1
        if world.kill_at is not None and world.calls >= world.kill_at:
            raise FleetKilled
        for _ in range(world.rng.randrange(3)):
            await asyncio.sleep(0)
        if world.rng.random() < world.restart:
            self.restart()
        if self.down or world.rng.random() < world.loss:
            raise Unreachable("lost on the way")
        answer = self._answer(path, dict(body or {}))
        if world.rng.random() < world.loss:
            raise Unreachable("the answer was lost")
        return answer

    def _answer(self, path: str, body: dict[str, object]) -> Answer:
        if path in self.refuses:
            return Answer(400, {"success": False, "message": f"{path} is refused here"})
        return {
            "/server_info": self._info,
            "/pause_generation": self._pause,
            "/drain": self._pause,
            "/continue_generation": self._continue,
            "/prepare_weight_update": self._prepare,
            "/commit_weight_update": self._commit,
            "/discard_weight_update": self._discard,
            "/weights_checker": self._checksum,
            "/join_fleet": self._join,
            "/flush_cache": lambda body: Answer(200, {"success": True}),
        }[path](body)

    def _info(self, body: dict[str, object]) -> Answer:
        return Answer(
            200,
            {
                "instance": self.instance,
                "weight_version": self.version,
                "status": "paused" if self.paused or self.waits else "ok",
                "awaits_fleet": self.waits,
                "prepared_update": self.prepared and self.prepared[0],
                "model_path": self.path,
            },
        )

    def _pause(self, body: dict[str, object]) -> Answer:
        self.change(paused=True)
        return Answer(200, {"status": "ok"})

    def _continue(self, body: dict[str, object]) -> Answer:
        self.change(paused=False)
        return Answer(200, {"status": "ok"})

    def _prepare(self, body: dict[str, object]) -> Answer:
        path, update = str(body["model_path"]), str(body["update_id"])
        if path not in CHECKPOINTS:
            return Answer(400, {"success": False, "message": f"there is no {path}"})
        if self.prepared is not None and self.prepared != (update, path):
            return Answer(409, {"success": False, "message": "another update is prepared"})
        self.prepared = (update, path)
        return Answer(200, {"success": True})

    def _commit(self, body: dict[str, object]) -> Answer:
        update = str(body["update_id"])
        if update == self.committed:
            return Answer(200, {"success": True, "outcome": "updated"})
        if self.prepared is None or self.prepared[0] != update:
            return Answer(409, {"success": False, "outcome": "unchanged", "message": "nothing is prepared"})
        path = self.prepared[1]
        self.change(
            weights=self.lies or CHECKPOINTS[path],
            version=str(body["weight_version"]),
            path=path,
            prepared=None,
        )
        self.committed = update
        return Answer(200, {"success": True, "outcome": "updated", "weight_version": self.version})

    def _discard(self, body: dict[str, object]) -> Answer:
        if self.prepared is not None and self.prepared[0] == body["update_id"]:
            self.prepared = None
        return Answer(200, {"success": True})

    def _checksum(self, body: dict[str, object]) -> Answer:
        return Answer(
            200, {"success": True, "per_engine_checksum": self.weights, "weight_version": self.version}
        )

    def _join(self, body: dict[str, object]) -> Answer:
        if body["weight_version"] != self.version:
            return Answer(409, {"success": False, "message": f"this engine has {self.version}"})
        self.change(waits=False)
        return Answer(200, {"success": True})
