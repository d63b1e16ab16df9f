"""The cases measure what they say: checked by effect, not by time."""

from __future__ import annotations

import numpy as np
import pytest

from bench.machines import fine_grained, simulated
from bench.pages import SlotExpander, used_pool
from bench.scheduler import churn, percentiles, steady
from devicekit.device import get_device
from devicekit.registry import discover
from devicekit.scheduling.scheduler import Scheduler


@pytest.mark.parametrize("page_size", [1, 4])
def test_slots_are_those_of_each_page_in_order(page_size: int) -> None:
    pages = np.array([7, 3], np.int32).tobytes()
    slots = SlotExpander(page_size, most_pages=4).slots(pages)
    assert slots.tolist() == [page * page_size + at for page in (7, 3) for at in range(page_size)]


def test_a_used_pool_is_whole_and_nothing_in_it_is_fresh() -> None:
    pool = used_pool(100)
    assert pool.available == 100
    assert pool.save().fresh == 101


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_steady_step_gives_every_request_a_token_and_none_ends(page_size: int) -> None:
    scheduler = steady(get_device("cpu"), 32, page_size=page_size, positions=512)
    taken = scheduler.state.kv.pages.in_use
    steps = [scheduler.step() for _ in range(16)]
    assert [(step.ran, step.outputs) for step in steps] == [(32, ())] * 16
    assert scheduler.state.kv.pages.in_use - taken == 32 * 16 // page_size


def test_as_many_requests_come_as_go(monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[int] = []
    step = Scheduler.step

    def counted(self: Scheduler) -> object:
        result = step(self)
        finished.append(len(result.outputs))
        return result

    monkeypatch.setattr(Scheduler, "step", counted)
    steps = churn(get_device("cpu"), 128, group=16)
    finished.clear()
    assert steps() > 0
    assert finished == [1] * 16


def test_percentiles_are_of_single_steps() -> None:
    assert percentiles([1.0] * 95 + [9.0] * 5) == {50: 1.0, 90: 1.0, 99: 9.0}


def test_a_simulated_machine_is_offered_only_while_it_is_measured() -> None:
    before = {candidate.name for candidate in discover()}
    with simulated(fine_grained()) as (_, device):
        assert device.backend.name in {candidate.name for candidate in discover()}
    assert {candidate.name for candidate in discover()} == before
