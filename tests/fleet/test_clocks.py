"""Clocks that jump while a verb is under way: the wall clock is set, or the machine was suspended meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit.fleet import Fleet, FleetReply, open_record, tend
from tests.fleet.simulated import FleetKilled, SimEngine, World
from tests.fleet.test_update import (
    Work,
    adopt,
    engines,
    quiet,
    resume,
    resume_back,
    rolling,
    steer,
    update,
)

Before = Callable[[Path, list[SimEngine], World], object]


def _nothing(file: Path, members: list[SimEngine], world: World) -> None:
    """The fleet has adopted what its engines serve."""


def _paused(file: Path, members: list[SimEngine], world: World) -> None:
    steer(file, members, _verb("/pause_generation"))


def _one_started_anew(file: Path, members: list[SimEngine], world: World) -> None:
    members[1].restart()


def _one_elsewhere(file: Path, members: list[SimEngine], world: World) -> None:
    """On a machine that has not the fleet's files: it is brought them by another engine."""
    members[1].restart()
    members[1].lacks.add("/old")


def _cut_short(after: int, how: Work) -> Before:
    def before(file: Path, members: list[SimEngine], world: World) -> None:
        world.kill_at = world.calls + after
        with pytest.raises(FleetKilled):
            steer(file, members, how)
        world.kill_at = None

    return before


def _verb(path: str, **body: object) -> Work:
    return lambda fleet: fleet.verb(path, body, timeout=90.0)  # long: it is looked after meanwhile


VERBS: dict[str, tuple[Before, Work]] = {
    "adopt": (_nothing, adopt),
    "flush": (_nothing, _verb("/flush_cache", timeout=60)),
    "pause": (_nothing, _verb("/pause_generation", mode="in_place")),
    "drain": (_nothing, _verb("/drain", timeout=60)),
    "continue": (_paused, _verb("/continue_generation")),
    "tend": (_one_started_anew, tend),
    "tend, from a peer": (_one_elsewhere, tend),
    "update": (_nothing, update()),
    "update, or back": (_nothing, update(take_back=True)),
    **{f"resume after {at} calls": (_cut_short(at, update()), resume) for at in (8, 11, 14, 17, 20)},
    **{f"back after {at} calls": (_cut_short(at, update()), resume_back) for at in (14, 17, 20)},
}
WAIT = {  # for requests to end, as long as an engine's clock says
    "rolling": (_nothing, rolling()),
    "rolling, or back": (_nothing, rolling(take_back=True)),
    **{f"resume rolling after {at}": (_cut_short(at, rolling()), resume) for at in (12, 20, 28)},
}


def _at_any_call(
    folder: Path, case: tuple[Before, Work], jump: Callable[[World], None], settle: Callable[[], None]
) -> None:
    """At each call of a verb, and at every call after it by as much again: it does what it does without."""
    for at in range(1, 100):
        settle()
        expected, _ = _done(folder / f"steady{at}", case, at, [])
        found, left = _done(folder / f"fleet{at}", case, at, [jump] * (300 - at))
        assert found == expected, at
        if left == 300 - at:
            break
    assert at > 3


def _done(
    file: Path, case: tuple[Before, Work], at: int, jumps: list[Callable[[World], None]]
) -> tuple[object, int]:
    """What a verb did and left behind, and how many jumps there was no time for. The first is at its nth call."""
    before, work = case
    world = quiet(at)
    members = engines(3, world)
    steer(file, members, adopt)
    before(file, members, world)

    async def happen() -> None:
        jumps[0](world)

    world.happenings = [(world.calls + at + later, happen) for later in range(len(jumps))]
    reply = asyncio.run(_as_process(file, members, world, work))
    assert all(one.membership.steered_by is None for one in members), at
    engine = [(one.weights, one.version, one.serves, one.paused, one.prepared) for one in members]
    return (reply.success, reply.outcome, reply.weight_version, reply.held, engine), len(world.happenings)


async def _as_process(file: Path, members: list[SimEngine], world: World, work: Work) -> FleetReply:
    loop = asyncio.get_running_loop()
    true = loop.time
    loop.time = lambda: true() + world.jumped  # type: ignore[method-assign]
    with open_record(file, [one.name for one in members]) as record:
        return await work(Fleet(members, record))


@pytest.mark.parametrize("verb", [*VERBS, *WAIT])
@pytest.mark.parametrize("jump", [-3600.0, 3600.0], ids=["back", "on"])
def test_a_wall_clock_that_is_set_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, jump: float
) -> None:
    true, jumped = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true() + jumped[0])
    monkeypatch.setattr(time, "time_ns", lambda: int((true() + jumped[0]) * 1e9))

    def set_it(world: World) -> None:
        jumped[0] += jump

    def settle() -> None:
        jumped[0] = 0.0

    _at_any_call(tmp_path, {**VERBS, **WAIT}[verb], set_it, settle)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("jump", [1.0, 40.0, 86400.0])
def test_a_machine_that_was_suspended_goes_on_with_the_verb(tmp_path: Path, verb: str, jump: float) -> None:
    """Its steady clock has gone on: what was waited for is overdue, and engines that answer are waited for."""

    def suspend(world: World) -> None:
        world.jumped += jump

    _at_any_call(tmp_path, VERBS[verb], suspend, lambda: None)
