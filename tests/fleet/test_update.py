"""One outcome over all engines, and never two versions at once, whatever is lost, restarted or killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.fleet import (
    Fleet,
    FleetBusy,
    FleetReply,
    FleetUpdate,
    NoFleetWeights,
    UnknownMembers,
    open_record,
    tend,
)
from tests.fleet.simulated import FleetKilled, SimEngine, World

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


def rolling(path: str = "/new", version: str = "v1", *, take_back: bool = False) -> Work:
    return lambda fleet: FleetUpdate(fleet, take_back=take_back).rolling(path, version)


def resume(fleet: Fleet) -> Awaitable[FleetReply]:
    return FleetUpdate(fleet).resume()


def resume_back(fleet: Fleet) -> Awaitable[FleetReply]:
    return FleetUpdate(fleet, take_back=True).resume()


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
        ("/new", lambda one: one.refuses.add("/hold_for_fleet")),
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


def test_weights_without_a_name_change_nothing(tmp_path: Path) -> None:
    members = engines(2, quiet())
    for verb in (update, rolling):
        (refused,) = steer(tmp_path / "fleet", members, verb(version=""))
        assert (refused.success, refused.outcome) == (False, "unchanged")
        assert refused.message == "Nothing was changed. Give the new weights a name."
    assert has(members, "a")


def test_engines_that_wait_are_told_when_they_are_adopted(tmp_path: Path) -> None:
    world = quiet()
    members = engines(3, world)
    assert steer(tmp_path / "fleet", members, adopt)[0].notes == ()
    members[:2] = [SimEngine(one.name, world, waits=True) for one in members[:2]]
    (adopted,) = steer(tmp_path / "fleet", members, adopt)
    assert adopted.success
    assert "2 engines of these, started to wait for the fleet, will serve nobody" in adopted.notes[0]


def test_one_engine_under_two_names_or_another_model_is_refused(tmp_path: Path) -> None:
    members = engines(2, quiet())
    members[1].instance = members[0].instance
    for verb in (update(), adopt):
        (twin,) = steer(tmp_path / "fleet", members, verb)
        assert "same engine" in twin.message
    members[1].instance, members[1].kind = "own", {"page_size": 32}
    for verb in (update(), rolling(), adopt):
        (odd,) = steer(tmp_path / "fleet", members, verb)
        assert not odd.success
        assert "page_size=32" in odd.message
    assert has(members, "a")


def test_a_pause_of_an_operator_is_there_after_an_update(tmp_path: Path) -> None:
    members = engines(2, quiet())
    for how in (update("/new", "v1"), rolling("/newer", "v2"), update("/missing", "v3")):
        steer(tmp_path / "fleet", members, lambda fleet: fleet.verb("/pause_generation", {}), how)
        assert [one.paused for one in members] == [True, True]
        assert not any(one.waits for one in members)
    assert members[0].weights == "c"


def test_a_rolling_update_that_nobody_can_read_stops_no_engine(tmp_path: Path) -> None:
    members = engines(3, quiet())
    (done,) = steer(tmp_path / "fleet", members, rolling("/missing"))
    assert (done.success, done.outcome) == (False, "unchanged")
    assert has(members, "a")
    assert steer(tmp_path / "fleet", members, resume)[0].message == "No update is under way."


def test_a_rolling_update_that_stops_half_way_goes_on_or_back(tmp_path: Path) -> None:
    for back in (False, True):
        members, file = engines(3, quiet()), tmp_path / f"fleet{back}"
        members[1].refuses.add("/commit_weight_update")
        (stopped,) = steer(file, members, rolling())
        assert (stopped.success, stopped.outcome) == (False, "partial")
        assert "serve on" in stopped.message
        assert [one.weights for one in members] == ["b", "a", "a"]
        assert all(one.serves for one in members)
        members[1].refuses.clear()
        (done,) = steer(file, members, resume_back if back else resume)
        assert has(members, "a" if back else "b"), done
        assert done.success is not back


def test_rolling_takes_back_by_itself_where_asked(tmp_path: Path) -> None:
    members = engines(4, quiet())
    members[2].refuses.add("/commit_weight_update")
    (done,) = steer(
        tmp_path / "fleet",
        members,
        lambda fleet: FleetUpdate(fleet, take_back=True, at_once=2).rolling("/new", "v1"),
    )
    assert (done.success, done.outcome, done.weight_version) == (False, "unchanged", "v0")
    assert has(members, "a")


def test_an_engine_that_says_it_is_held_and_serves_is_named(tmp_path: Path) -> None:
    members = engines(3, quiet())
    members[1].ignores = {"/hold_for_fleet", "/commit_weight_update", "/prepare_weight_update"}
    (done,) = steer(tmp_path / "fleet", members, update())
    assert done.held == (members[1].name,)
    assert f"{members[1].name} SAY THAT THEY GENERATE" in done.message


def test_tending_compares_what_an_engine_has_with_what_the_fleet_confirmed(tmp_path: Path) -> None:
    members = engines(3, quiet())
    steer(tmp_path / "fleet", members, update())
    members[0].restart()
    members[0].lies = "x"  # its disk holds other weights under the same path
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert not tended.success
    assert "checksum" in tended.message
    assert not members[0].serves


def test_an_engine_whose_machine_lacks_the_path_takes_the_weights_of_another(tmp_path: Path) -> None:
    world = quiet()
    members = engines(3, world)
    steer(tmp_path / "fleet", members, update())
    members[0].restart()
    members[0].lacks.add("/new")
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert tended.success
    assert has(members, "b")
    assert f"took the weights of {members[1].name}" in tended.outcomes[0].message
    assert world.most_versions == 1


def test_so_does_one_of_a_fleet_of_which_nobody_said_where_its_weights_are(tmp_path: Path) -> None:
    members = engines(3, quiet())
    for one in members:
        one.change(weights="c", version="trained", path=None)
    steer(tmp_path / "fleet", members, adopt)
    members[2].restart()
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert tended.success, tended.message
    assert has(members, "c")


@pytest.mark.parametrize(
    "harm",
    [
        lambda one: setattr(one, "gives", "x"),
        lambda one: one.refuses.add("/read_weights"),
        lambda one: one.refuses.add("/weights_checker"),
    ],
    ids=["lies", "refuses", "other trouble"],
)
def test_where_a_peer_does_not_give_the_fleets_weights_another_is_asked(
    tmp_path: Path, harm: Callable[[SimEngine], object]
) -> None:
    members = engines(3, quiet())
    steer(tmp_path / "fleet", members, update())
    members[0].restart()
    members[0].lacks.add("/new")
    harm(members[1])
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert tended.success, tended.message
    assert has(members, "b")


def test_an_engine_that_can_have_the_weights_nowhere_waits_and_says_why(tmp_path: Path) -> None:
    world = quiet()
    members = engines(6, world)
    steer(tmp_path / "fleet", members, update())
    members[0].restart()
    members[0].lacks.add("/new")
    for one in members[1:]:
        one.gives = "x"
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert not tended.success
    assert not members[0].serves
    assert "no /new on this machine" in tended.outcomes[0].message
    assert tended.outcomes[0].message.count("gave other weights") == 3, "three are asked, not all"
    assert world.most_versions == 1
    for one in members[1:]:
        one.gives = None
    assert steer(tmp_path / "fleet", members, tend)[0].success
    assert has(members, "b")


def test_many_engines_that_take_the_weights_of_others_give_them_on(tmp_path: Path) -> None:
    members = engines(40, quiet())
    steer(tmp_path / "fleet", members, update())
    for one in members[1:]:
        one.restart()
        one.lacks.add("/new")
    (tended,) = steer(tmp_path / "fleet", members, tend)
    assert tended.success, tended.message
    assert has(members, "b")
    assert 0 < members[0].asked < 20, "not each of them asked the only one that had them at first"


def test_engines_that_do_not_agree_cannot_be_adopted(tmp_path: Path) -> None:
    members = engines(2, quiet())
    members[1].change(weights="z")
    (reply,) = steer(tmp_path / "fleet", members, adopt)
    assert not reply.success
    with pytest.raises(NoFleetWeights):
        steer(tmp_path / "fleet", members, tend)
    (reply,) = steer(tmp_path / "fleet", members, update("/missing"))
    assert reply.outcome == "unchanged"


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


def test_of_two_fleets_over_the_same_engines_one_wins_and_the_other_is_told_who(tmp_path: Path) -> None:
    members = engines(3, quiet())

    async def run(take_over: bool) -> list[FleetReply | BaseException]:
        names = [one.name for one in members]
        with open_record(tmp_path / "one", names) as one, open_record(tmp_path / "two", names[::-1]) as two:
            fleets = Fleet(members, one), Fleet(members[::-1], two, take_over=take_over)
            updates = (
                FleetUpdate(fleets[0]).all_at_once("/new", "v1"),
                fleets[1].verb("/pause_generation", {}),
            )
            return list(await asyncio.gather(*updates, return_exceptions=True))

    won, lost = asyncio.run(run(take_over=False))
    assert isinstance(won, FleetReply)
    assert won.success
    assert isinstance(lost, FleetBusy)
    assert f"The fleet of {tmp_path / 'one'} (process" in str(lost)
    assert has(members, "b")
    assert steer(tmp_path / "two", members[::-1], update("/newer", "v2"))[0].success, "the first is done"


def test_an_engine_that_a_killed_fleet_has_claimed_can_be_taken_over(tmp_path: Path) -> None:
    world = quiet()
    members = engines(2, world)
    world.kill_at = 12
    with pytest.raises(FleetKilled):
        steer(tmp_path / "one", members, update())
    world.kill_at = None
    with pytest.raises(FleetBusy, match="take the engine over"):
        steer(tmp_path / "two", members, adopt)

    async def run() -> FleetReply:
        with open_record(tmp_path / "two", [one.name for one in members]) as record:
            return await FleetUpdate(Fleet(members, record, take_over=True)).all_at_once("/newer", "v2")

    assert asyncio.run(run()).success
    assert all(one.weights == "c" for one in members)


def test_members_are_asked_for_anew_before_each_verb(tmp_path: Path) -> None:
    world = quiet()
    there = {one.name: one for one in engines(3, world)}

    class Source:
        names: tuple[str, ...] = tuple(there)[:2]

        async def members(self) -> tuple[str, ...]:
            if not self.names:
                raise UnknownMembers("nobody knows")
            return self.names

    async def run() -> None:
        source = Source()
        with open_record(tmp_path / "fleet", sourced=True) as record:
            fleet = Fleet([], record, source=source, connect=there.__getitem__)
            assert (await FleetUpdate(fleet).all_at_once("/new", "v1")).success
            late = there["http://engine2"]
            assert late.weights == "a"
            late.restart()
            source.names = tuple(there)[1:]
            assert (await tend(fleet)).success
            assert (late.weights, late.serves) == ("b", True)
            assert record.record.members == source.names
            source.names = ()
            with pytest.raises(UnknownMembers):
                await fleet.verb("/pause_generation", {})

    asyncio.run(run())


@pytest.mark.parametrize("content", ["[]", "{", '{"members": 3}', '{"served": {"x": 1}}', "\ud800"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "fleet").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigurationError, match="fleet"), open_record(tmp_path / "fleet"):
        pass
