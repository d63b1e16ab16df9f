"""Fleets and engines end at any step, and a network loses, delays and repeats: never two versions at once.

The protocol is the product's own on both sides. Every run is decided by its seed, which a failure names; set
``DEVICEKIT_TEST_FLEET_SEED`` to begin with another one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit.fleet import Fleet, FleetBusy, FleetReply, FleetUpdate, open_record, tend
from tests.fleet.simulated import CHECKPOINTS, FleetKilled, SimEngine, World
from tests.fleet.test_update import Work, adopt, engines, has, quiet, resume, rolling, steer, update

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
            assert not reply.success or world.calls > before + at, f"ended at call {at}: {reply.message}"
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
    members = engines(count, world)
    steer(file, members, adopt)
    few = count < 10
    world.loss, world.restart = (0.04, 0.03) if few else (0.002, 0.002)
    world.delay, world.twice = (0.05, 0.05) if few else (0.002, 0.01)
    for number, path in enumerate(["/new", "/newer", "/old"]):
        world.kill_at = world.calls + rng.randrange(1, 12 * count) if rng.random() < 0.5 else None
        work: Work = update(path, f"v{seed}.{number}", take_back=rng.random() < 0.5)
        while (reply := _until_killed(file, members, work)) is None:
            work = resume
            world.kill_at = world.calls + rng.randrange(1, 12 * count) if rng.random() < 0.3 else None
        world.kill_at = None
        assert world.most_versions == 1, f"seed {seed}, update {number}: {reply.message}"
        if reply.success and reply.outcome == "updated":
            assert all(one.weights == CHECKPOINTS[path] for one in members if one.serves), f"seed {seed}"
        if rng.random() < 0.5:
            _until_killed(file, members, tend)
            assert world.most_versions == 1, f"seed {seed}, tending after update {number}"
    world.loss = world.restart = world.delay = world.twice = 0.0
    world.calls += 100
    world.deliver()
    steer(file, members, resume)
    (tended,) = steer(file, members, tend)
    assert tended.success, f"seed {seed}: {tended.message}"
    assert len(+world.serving) == 1, f"seed {seed}"
    assert all(one.serves for one in members), f"seed {seed}"
    assert world.most_versions == 1, f"seed {seed}"


def _until_killed(file: Path, members: list[SimEngine], work: Work) -> FleetReply | None:
    try:
        return steer(file, members, work)[0]
    except FleetKilled:
        return None


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
