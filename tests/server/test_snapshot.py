"""What others see of a scheduler: always how it was after its last step, and made only for those who look."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from devicekit.device import get_device
from devicekit.scheduling.messages import Abort, Blocker, Continue, Flush, Operation, Pause, PauseMode
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from devicekit.server.snapshot import Observation, Snapshot
from tests.hash_runner import HashRunner


def _scheduler() -> Scheduler:
    device = get_device("cpu")
    runner = HashRunner(device, num_pages=32, page_size=4)
    return Scheduler(
        runner, device, SchedulerLimits(num_pages=32, page_size=4, max_running=4, max_batch_tokens=16)
    )


def _request(identity: str, tokens: int = 6) -> Request:
    params = SamplingParams(max_new_tokens=tokens, temperature=0.0)
    return Request(identity, np.arange(1, 10, dtype=np.int32), params)


def _agrees(seen: Snapshot, scheduler: Scheduler) -> None:
    state = scheduler.state
    assert (seen.running, seen.prefilling, seen.waiting) == (
        len(state.running),
        len(state.prefilling),
        len(state.waiting),
    )
    assert (seen.paused, seen.epoch, seen.failure) == (state.paused, state.gate.epoch, state.gate.failure)
    assert seen.holds == tuple(state.gate.holds.values())
    assert seen.blockers == scheduler.blockers()
    assert seen.weight_version == state.weight_version
    assert seen.cache_hit_rate == state.requests.cache_figures.hit_rate
    assert seen.pages_used + seen.pages_cached == state.kv.pages.in_use
    assert state.kv.prefix is not None
    assert seen.pages_cached == state.kv.prefix.evictable


def test_what_is_seen_is_what_was_after_the_last_step_and_stays_so() -> None:
    rng = random.Random(4)
    scheduler = _scheduler()
    observation = Observation(scheduler)
    hold = scheduler.state.gate.token("test")
    _agrees(observation.snapshot, scheduler)
    kept: list[tuple[Snapshot, dict[str, object]]] = []
    deeds: tuple[type[Operation], ...] = (Continue, Continue, Flush)
    for step in range(1, 200):
        chance = rng.random()
        if chance < 0.4:
            scheduler.post(_request(f"r{step}", rng.randint(1, 12)))
        elif chance < 0.5:
            scheduler.post(Pause(f"{step}", rng.choice(list(PauseMode))))
        elif chance < 0.7:
            scheduler.post(rng.choice(deeds)(f"{step}"))
        elif chance < 0.75:
            scheduler.post(Abort(f"{step}", all=True))
        elif chance < 0.8:
            hold.hold(f"step {step}")
        elif chance < 0.9:
            hold.release()
        scheduler.step()
        observation.note(step, 7 * step)
        if rng.random() < 0.5:
            seen = observation.snapshot
            assert (seen.steps, seen.computed_tokens) == (step, 7 * step)
            assert seen is observation.snapshot, "nothing has happened since"
            _agrees(seen, scheduler)
            kept.append((seen, dataclasses.asdict(seen)))
    assert all(dataclasses.asdict(seen) == then for seen, then in kept)


def test_between_two_steps_nothing_is_seen_of_the_next() -> None:
    scheduler = _scheduler()
    observation = Observation(scheduler)
    for index in range(6):
        scheduler.add(_request(f"r{index}"))
    scheduler.step()
    observation.note(1, 16)
    blockers = scheduler.blockers()
    for _ in range(3):
        scheduler.step()
    scheduler.state.gate.fail("lost")
    seen = observation.snapshot
    assert (seen.running + seen.prefilling + seen.waiting, seen.steps, seen.healthy) == (6, 1, True)
    assert seen.blockers == blockers != ()
    assert observation.failure == ""
    observation.note(4, 40)
    assert observation.failure == observation.snapshot.failure == "lost"
    assert Blocker("waiting", 2) not in observation.snapshot.blockers


def test_while_nobody_looks_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = _scheduler()
    observation = Observation(scheduler)
    made: list[object] = []

    def count(**fields: object) -> Snapshot:
        made.append(fields)
        return Snapshot(**fields)  # type: ignore[arg-type]

    monkeypatch.setattr("devicekit.server.snapshot.Snapshot", count)
    scheduler.add(_request("one"))
    for step in range(5):
        scheduler.step()
        observation.note(step, step)
    assert not made
    for _ in range(3):
        assert observation.snapshot.steps == 4
    assert len(made) == 1
