"""Fleets and engines end at any step, and a network loses, delays and repeats: never two versions at once.

The protocol is the product's own on both sides. Every run is decided by its seed, which a failure names; set
``DEVICEKIT_TEST_FLEET_SEED`` to begin with another one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit.fleet import Fleet, FleetBusy, FleetError, FleetReply, FleetUpdate, open_record, tend
from devicekit.fleet.record import Phase
from tests.fleet.names import Names
from tests.fleet.simulated import CHECKPOINTS, FleetKilled, SimEngine, World
from tests.fleet.test_update import (
    Work,
    adopt,
    engines,
    has,
    quiet,
    resume,
    resume_back,
    rolling,
    steer,
    update,
)
from tests.fleet.troubles import Troubles

_FIRST = int(os.environ.get("DEVICEKIT_TEST_FLEET_SEED", "0"))


def take_back() -> Work:
    return update(take_back=True)


def tending() -> Work:
    return lambda fleet: tend(fleet)


def pausing() -> Work:
    return lambda fleet: fleet.verb("/pause_generation", {})


def adopting() -> Work:
    return adopt


EVERY = [pytest.param(1, marks=pytest.mark.thorough, id="each call"), pytest.param(5, id="some calls")]


@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("how", [update, take_back, rolling, tending, pausing, adopting])
def test_a_fleet_process_may_be_killed_at_any_call(
    tmp_path: Path, how: Callable[[], Work], step: int
) -> None:
    killed = 0
    for at in range(1 + _FIRST % step, 300, step):
        world = quiet(at)
        members, file = engines(3, world), tmp_path / f"fleet{at}"
        if how is take_back:
            members[1].refuses.add("/commit_weight_update")
        steer(file, members, adopt)
        if how is tending:
            steer(file, members, update())
            members[2].restart()
        world.kill_at = world.calls + at
        try:
            steer(file, members, how())
        except FleetKilled:
            killed += 1
            world.kill_at = None
            (finished,) = steer(file, members, resume)
            assert finished.success or finished.outcome in ("unchanged", "partial")
            for one in members:
                one.refuses.clear()
                one.change(paused=False)
            assert steer(file, members, tend)[0].success, f"killed at call {at}"
            assert has(members, "b") or has(members, "a"), f"killed at call {at}"
            assert all(one.membership.steered_by is None for one in members)
        else:
            break
        if how is not rolling:
            assert world.most_versions == 1, f"killed at call {at}"
    assert killed > 5 // step


@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("how", [update, take_back, rolling])
@pytest.mark.parametrize("comes_back", [False, True])
def test_an_engine_may_end_at_any_call(
    tmp_path: Path, how: Callable[[], Work], comes_back: bool, step: int
) -> None:
    for at in range(1 + _FIRST % step, 300, step):
        world = quiet(at)
        members, file = engines(3, world), tmp_path / f"fleet{at}"
        steer(file, members, adopt)
        before = world.calls
        members[1].dies_at = before + at
        members[1].comes_back = comes_back
        (reply,) = steer(file, members, how())
        if members[1].dies_at is not None:
            assert reply.success
            break
        told = {one.member: one for one in reply.outcomes}
        if not comes_back:
            assert not reply.success or world.calls >= before + at, f"ended at call {at}: {reply.message}"
        if how is not rolling:
            assert world.most_versions == 1, f"ended at call {at}"
        assert told.keys() <= {one.name for one in members}
        members[1].restart()
        steer(file, members, resume)
        assert steer(file, members, tend)[0].success, f"ended at call {at}"
        assert has(members, "b") or has(members, "a"), f"ended at call {at}"
    assert at > 12


def _one_run(file: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    world = World(rng)
    names = Names(world, engines(count, world))
    steer(file, names.engines, adopt)
    few = count < 10
    if rng.random() < 0.7:
        world.loss, world.restart = (0.04, 0.03) if few else (0.002, 0.002)
        world.delay, world.twice = (0.05, 0.05) if few else (0.002, 0.01)
    run = _Run(file, world, names, f"seed {seed}", changing=rng.random() < 0.6)
    for number, path in enumerate(["/new", "/newer", "/old"]):
        world.kill_at = world.calls + rng.randrange(1, 12 * count) if rng.random() < 0.5 else None
        run.troubles.begin(12 * count)
        rolls = rng.random() < 0.3
        how = rolling if rolls else update
        work: Work = how(path, f"v{seed}.{number}", take_back=rng.random() < 0.5)
        while (reply := run.steer(work, rolls=rolls)) is None:
            work = resume_back if rng.random() < 0.2 else resume
            world.kill_at = world.calls + rng.randrange(1, 12 * count) if rng.random() < 0.3 else None
        world.kill_at = None
        if run.troubles.overtaken is not None:
            return
        if reply.success and reply.outcome == "updated":
            run.updated(reply)
        if rng.random() < 0.5:
            run.steer(rng.choice((tend, resume)))
            if run.troubles.overtaken is not None:
                return
    run.end()


class _Run:
    """What one fleet does, while everything happens to it."""

    def __init__(self, file: Path, world: World, names: Names, name: str, *, changing: bool) -> None:
        """``changing``: the fleet asks who belongs to it, and that may change."""
        self._file, self._world, self._names = file, world, names
        self.name = name
        self._changing = changing
        self._take_over = False
        self.troubles = Troubles(file.parent, world, names, changing=changing)

    def steer(self, work: Work, *, rolls: bool = False) -> FleetReply | None:
        """Its answer; ``None``: the process was killed, or had to give up, and another must resume.

        ``rolls``: it may begin a rolling update, until the end of which two versions serve.
        """
        world, troubles = self._world, self.troubles
        world.most_versions = len(+world.serving)
        rolls = rolls or self._rolling
        try:
            reply = asyncio.run(self._as_process(work))
        except FleetKilled:
            reply = None
        except FleetError as error:  # told to whoever asked
            self._take_over = isinstance(error, FleetBusy)  # from the fleet that came between, and is gone
            troubles.heal()
            reply = None
        assert world.most_versions <= 1 + rolls, f"{self.name}: {reply}"
        if troubles.overtaken is not None:
            serving = {one.weights for one in self._names.engines if one.counted}
            assert not troubles.overtaken or serving <= {troubles.overtaken}, (
                f"{self.name}: {reply} undid what another fleet confirmed"
            )
            reply = reply or FleetReply(False, "overtaken")
        return reply

    @property
    def _rolling(self) -> bool:
        """Whether the file tells of a rolling update that is not at its end."""
        told = json.loads(self._file.read_text())["update"] or {}
        return told.get("phase") in (Phase.ROLLING, Phase.ROLLING_BACK)

    def updated(self, reply: FleetReply) -> None:
        """It said that all have the new weights: of this update, or of an earlier one that was not at its end."""
        weights = CHECKPOINTS[json.loads(self._file.read_text())["served"]["path"]]
        told = {one.member for one in reply.outcomes}
        members = [one for one in self._names.engines if one.name in told]
        # Of one alone nobody can tell that it has loaded something else.
        right = {weights, members[0].lies} if len(members) == 1 else {weights}
        assert all(one.weights in right for one in members if one.counted), self.name
        # What was given up, and arrives after all, may hold one that is done: the next look finds it.
        anew = [one for one in members if one.waits and one.version == "v0"]
        assert self._world.delay or all(one.serves or one in anew for one in members), f"{self.name}: {reply}"

    async def _as_process(self, work: Work) -> FleetReply:
        world, loop = self._world, asyncio.get_running_loop()
        true = loop.time
        loop.time = lambda: true() + world.jumped  # type: ignore[method-assign]
        source = self._names if self._changing else None
        found = [] if source is not None else [one.name for one in self._names.engines]
        with open_record(self._file, found, sourced=source is not None) as record:
            members = [self._names.connect(name) for name in record.record.members]
            self.troubles.fleet = fleet = Fleet(
                members, record, source=source, connect=self._names.connect, take_over=self._take_over
            )
            try:
                return await work(fleet)
            finally:
                self.troubles.fleet = None

    def end(self) -> None:
        """Nothing more goes wrong: everybody serves the fleet's weights in the end."""
        world, name = self._world, self.name
        self.troubles.end()
        world.loss = world.restart = world.delay = world.twice = 0.0
        world.calls += 100
        world.deliver()
        self.steer(resume)
        if self._rolling:  # the first one that was brought the weights had others than those after it
            self.steer(resume_back)
        tended = self.steer(tend)
        assert tended is not None, name
        assert tended.success, f"{name}: {tended.message}"
        members = self._names.engines
        assert len({one.weights for one in members}) == 1, name
        assert all(one.serves for one in members), name


@pytest.mark.parametrize("count", [2, 5])
def test_no_two_versions_serve_whatever_is_lost_late_or_restarted(tmp_path: Path, count: int) -> None:
    for seed in range(_FIRST, _FIRST + 8):
        _one_run(tmp_path / f"fleet{seed}", seed, count)


def test_no_two_versions_serve_of_hundreds_of_engines(tmp_path: Path) -> None:
    _one_run(tmp_path / "fleet", _FIRST, 200)


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "runs"), [(2, 200), (5, 200), (1000, 4)])
def test_no_two_versions_serve_in_many_runs(tmp_path: Path, count: int, runs: int) -> None:
    for seed in range(_FIRST, _FIRST + runs):
        _one_run(tmp_path / f"fleet{seed}", seed, count)


def _both(folder: Path, members: list[SimEngine], seed: int) -> list[object]:
    """What two fleets make of updates that begin at the same moment."""
    names = [one.name for one in members]

    async def run() -> list[object]:
        with (
            open_record(folder / f"one{seed}", names) as one,
            open_record(folder / f"two{seed}", names) as two,
        ):
            each = [
                FleetUpdate(Fleet(members, file), take_back=True).all_at_once(path, f"{version}.{seed}")
                for file, path, version in ((one, "/new", "v1"), (two, "/newer", "v2"))
            ]
            return list(await asyncio.gather(*each, return_exceptions=True))

    return asyncio.run(run())


def test_two_fleets_at_once_never_serve_two_versions(tmp_path: Path) -> None:
    for seed in range(_FIRST, _FIRST + 10):
        world = World(random.Random(seed), loss=0.02, delay=0.03, twice=0.05)
        found = _both(tmp_path, engines(4, world), seed)
        assert all(isinstance(one, (FleetReply, FleetBusy)) for one in found), f"seed {seed}: {found}"
        assert world.most_versions == 1, f"seed {seed}"
