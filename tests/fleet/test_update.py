"""One outcome over all engines, and never two versions at once, whatever is lost, restarted or killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.fleet import Fleet, FleetBusy, FleetReply, FleetUpdate, NoFleetWeights, open_record, tend
from tests.fleet.simulated import CHECKPOINTS, FleetKilled, SimEngine, World

_T = TypeVar("_T")
Work = Callable[[Fleet], Awaitable[FleetReply]]


def quiet(seed: int = 0) -> World:
    return World(random.Random(seed))


def engines(count: int, world: World) -> list[SimEngine]:
    return [SimEngine(f"http://engine{number}", world) for number in range(count)]


def steer(file: Path, members: list[SimEngine], *work: Work) -> list[FleetReply]:
    """What a fleet process does from its start to its end."""

    async def run() -> list[FleetReply]:
        with open_record(file, [one.name for one in members]) as record:
            fleet = Fleet(members, record)
            return [await one(fleet) for one in work]

    return asyncio.run(run())


def adopt(fleet: Fleet) -> Awaitable[FleetReply]:
    return fleet.adopt()


def update(path: str = "/new", version: str = "v1", *, take_back: bool = False) -> Work:
    return lambda fleet: FleetUpdate(fleet, take_back=take_back).all_at_once(path, version)


def rolling(path: str = "/new", version: str = "v1") -> Work:
    return lambda fleet: FleetUpdate(fleet).rolling(path, version)


def resume(fleet: Fleet) -> Awaitable[FleetReply]:
    return FleetUpdate(fleet).resume()


def has(members: list[SimEngine], weights: str) -> bool:
    return all(one.weights == weights and one.serves for one in members)


@pytest.mark.parametrize("how", [update, rolling])
def test_an_update_reaches_every_engine(tmp_path: Path, how: Callable[[], Work]) -> None:
    world = quiet()
    members = engines(3, world)
    adopted, done = steer(tmp_path / "fleet", members, adopt, how())
    assert adopted.success
    assert (done.success, done.outcome, done.weight_version) == (True, "updated", "v1")
    assert [one.member for one in done.outcomes] == [one.name for one in members]
    assert has(members, "b")
    assert world.most_versions == (1 if how is update else 2)


@pytest.mark.parametrize(
    ("path", "harm"),
    [
        ("/missing", lambda one: None),
        ("/new", lambda one: one.refuses.add("/prepare_weight_update")),
        ("/new", lambda one: one.refuses.add("/pause_generation")),
        ("/new", lambda one: one.refuses.add("/commit_weight_update")),
        ("/new", lambda one: one.change(down=True)),
    ],
)
def test_what_fails_before_anything_is_written_changes_nothing(
    tmp_path: Path, path: str, harm: Callable[[SimEngine], object]
) -> None:
    members = engines(3, quiet())
    for one in members if path == "/missing" else members[1:2]:
        harm(one)
    if "/commit_weight_update" in members[1].refuses:
        for one in members:
            harm(one)
    (done,) = steer(tmp_path / "fleet", members, update(path))
    assert (done.success, done.outcome) == (False, "unchanged")
    assert all(one.weights == "a" and (one.serves or one.down) for one in members)
    assert all(one.prepared is None for one in members if not one.down)
    assert steer(tmp_path / "fleet", members, resume)[0].message == "No update is under way."


def test_who_cannot_write_is_kept_from_generating_until_it_can(tmp_path: Path) -> None:
    members = engines(3, quiet())
    members[1].refuses.add("/commit_weight_update")
    done = steer(tmp_path / "fleet", members, adopt, update())[-1]
    assert (done.success, done.outcome, done.held) == (False, "partial", (members[1].name,))
    assert has([members[0], members[2]], "b")
    assert not members[1].serves
    members[1].refuses.clear()
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert tended.success
    assert has(members, "b")


def test_or_the_others_get_their_old_weights_again(tmp_path: Path) -> None:
    members = engines(3, quiet())
    members[1].refuses.add("/commit_weight_update")
    done = steer(tmp_path / "fleet", members, adopt, update(take_back=True))[-1]
    assert (done.success, done.outcome, done.weight_version) == (False, "partial", "v0")
    assert has([members[0], members[2]], "a")
    assert not members[1].serves, "it cannot be given any weights, so nobody knows that it has the right ones"


def test_an_engine_that_has_other_weights_under_the_same_name_is_found(tmp_path: Path) -> None:
    world = quiet()
    members = engines(3, world)
    members[2].lies = "x"
    done = steer(tmp_path / "fleet", members, adopt, update())[-1]
    assert done.held == (members[2].name,)
    assert "checksum" in done.message
    assert world.most_versions == 1


def test_an_engine_that_starts_anew_serves_once_it_has_the_fleets_weights(tmp_path: Path) -> None:
    members = engines(3, quiet())
    steer(tmp_path / "fleet", members, adopt, update())
    members[0].restart()
    assert not members[0].serves
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert tended.success
    assert has(members, "b")


def test_one_engine_under_two_names_or_another_model_is_refused(tmp_path: Path) -> None:
    members = engines(2, quiet())
    members[1].instance = members[0].instance
    (twin,) = steer(tmp_path / "fleet", members, update())
    assert "same engine" in twin.message


def test_engines_that_do_not_agree_cannot_be_adopted(tmp_path: Path) -> None:
    members = engines(2, quiet())
    members[1].change(weights="z")
    (reply,) = steer(tmp_path / "fleet", members, adopt)
    assert not reply.success
    with pytest.raises(NoFleetWeights):
        steer(tmp_path / "fleet", members, tend)


def test_one_process_and_one_verb_steer_at_a_time(tmp_path: Path) -> None:
    members = engines(2, quiet())

    async def two(fleet: Fleet) -> FleetReply:
        with pytest.raises(FleetBusy, match="Process"), open_record(tmp_path / "fleet"):
            pass
        first = asyncio.ensure_future(FleetUpdate(fleet).all_at_once("/new", "v1"))
        await asyncio.sleep(0)
        with pytest.raises(FleetBusy, match="v1"):
            await fleet.verb("/flush_cache", {})
        return await first

    assert steer(tmp_path / "fleet", members, two)[0].success


@pytest.mark.parametrize("content", ["[]", "{", '{"members": 3}', '{"served": {"x": 1}}', "\ud800"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "fleet").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigurationError, match="fleet"), open_record(tmp_path / "fleet"):
        pass


@pytest.mark.parametrize("how", [update, rolling])
def test_a_fleet_process_may_be_killed_at_any_call(tmp_path: Path, how: Callable[[], Work]) -> None:
    killed = 0
    for at in range(1, 200):
        world = quiet(at)
        members, file = engines(3, world), tmp_path / f"fleet{at}"
        steer(file, members, adopt)
        world.kill_at = world.calls + at
        try:
            steer(file, members, how())
        except FleetKilled:
            killed += 1
            world.kill_at = None
            (finished,) = steer(file, members, resume)
            assert finished.success or finished.outcome == "unchanged" or "No update" in finished.message
            assert has(members, "b") or has(members, "a"), f"killed at call {at}"
        else:
            break
        if how is update:
            assert world.most_versions == 1, f"killed at call {at}"
    assert killed > 12
    assert has(members, "b")


@pytest.mark.parametrize("count", [2, 5, 1000])
def test_no_two_versions_serve_whatever_is_lost_or_restarted(tmp_path: Path, count: int) -> None:
    for seed in range(40 if count < 10 else 1):
        rng = random.Random(seed)
        world = World(rng)
        members, file = engines(count, world), tmp_path / f"fleet{seed}"
        steer(file, members, adopt)
        world.loss, world.restart = (0.05, 0.03) if count < 10 else (0.002, 0.002)
        for number, path in enumerate(["/new", "/newer", "/old"]):
            world.kill_at = world.calls + rng.randrange(1, 8 * count) if rng.random() < 0.5 else None
            work: Work = update(path, f"v{seed}.{number}", take_back=rng.random() < 0.5)
            while True:
                try:
                    (reply,) = steer(file, members, work)
                except FleetKilled:
                    world.kill_at = None
                    work = resume
                    continue
                break
            assert world.most_versions == 1, f"seed {seed}, update {number}"
            if reply.success and reply.outcome == "updated":
                assert all(one.weights == CHECKPOINTS[path] for one in members if one.serves), f"seed {seed}"
        world.loss, world.restart, world.kill_at = 0.0, 0.0, None
        steer(file, members, resume)
        replies = steer(file, members, tend)
        assert replies[0].success, f"seed {seed}: {replies[0].message}"
        assert len(+world.serving) == 1, f"seed {seed}"
