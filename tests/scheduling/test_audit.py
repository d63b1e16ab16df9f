"""Every page, row and state slot of a live scheduler is accounted for, and what goes missing is named."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import devicekit
from devicekit.memory.pages import PageAllocator
from devicekit.scheduling.audit import PoolsUnbalanced
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.messages import Flush, Pause, PauseMode
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits


class OneTokenRunner:
    limits = ModelLimits(100, 300, frozenset())

    def __init__(self) -> None:
        self.slots: list[list[int]] = []

    def step(self, batch: ForwardBatch) -> StepOutput:
        if batch.state_slots is not None:
            self.slots.append(batch.state_slots.tolist())
        return StepOutput(np.full(len(batch.logits_indices), 7, np.int32))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


def scheduler(
    *, checked: bool = True, states: int | None = None, pages: int = 40, prefix_caching: bool = True
) -> Scheduler:
    limits = SchedulerLimits(
        num_pages=pages,
        page_size=4,
        max_running=6,
        max_batch_tokens=20,
        conservativeness=0.05,
        checked=checked,
        prefix_caching=prefix_caching,
    )
    slots = None if states is None else PageAllocator(states, checked=checked)
    return Scheduler(OneTokenRunner(), devicekit.get_device("cpu"), limits, states=slots)


def add(one: Scheduler, count: int, *, size: int = 11, new: int = 20) -> None:
    for at in range(count):
        prompt = np.arange(1, size + 1) + at % 2
        params = SamplingParams(max_new_tokens=new, temperature=0.0)
        one.add(Request(f"r{len(one.state.requests)}", prompt, params))


@pytest.mark.parametrize("states", [None, 6, 2])
def test_every_pool_is_balanced_after_every_step_of_a_busy_scheduler(states: int | None) -> None:
    one = scheduler(states=states)
    add(one, 9)
    retractions = held = 0
    for at in range(400):
        if at == 12:
            one.post(Pause("p", PauseMode.RETRACT))
        if at == 13:
            one.state.gate.resume()
        retractions += sum(output.retractions for output in one.step().outputs)
        found = one.audit()
        assert found.balanced, str(found)
        assert found.rows.owned == len(one.state.running) + len(one.state.prefilling)
        if states is not None:
            assert found.states is not None
            assert found.states.owned == found.rows.owned
            held = max(held, found.states.owned)
        if not one.state.requests:
            break
    assert retractions > 0
    assert held == (states or 0)
    assert one.audit().pages.owned == one.audit().pages.protected == 0


def test_each_running_request_has_a_state_slot_of_its_own() -> None:
    one = scheduler(states=6)
    add(one, 5)
    while one.state.requests:
        one.step()
    runner = one.state.runner
    assert isinstance(runner, OneTokenRunner)
    assert runner.slots
    for slots in runner.slots:
        assert len(set(slots)) == len(slots)
        assert 0 not in slots


def test_a_flush_takes_back_every_state_slot() -> None:
    one = scheduler(states=3)
    add(one, 2)
    while one.state.requests:
        one.step()
    one.post(Flush("f"))
    assert one.step().replies[0].success
    assert one.state.kv.pools()["states"].available == 3


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_what_requests_can_take_is_what_is_free_and_what_the_cache_need_not_keep(
    prefix_caching: bool,
) -> None:
    one = scheduler(prefix_caching=prefix_caching)
    add(one, 3)
    while one.state.requests:
        one.step()
        pages = one.state.kv.pages
        cached = 0 if one.state.kv.prefix is None else one.state.kv.prefix.evictable
        assert one.state.kv.available == pages.available + cached <= pages.num_pages
    assert one.state.kv.available == one.state.kv.pages.num_pages


@pytest.mark.parametrize("pool", ["pages", "rows", "states"])
def test_a_checked_scheduler_names_the_pool_and_the_id_that_leaked(pool: str) -> None:
    one = scheduler(states=6)
    add(one, 2)
    one.step()
    lost = leak(one, pool)
    with pytest.raises(PoolsUnbalanced, match=rf"{pool} out of balance: .*leaked \({lost},\)") as caught:
        one.step()
    assert caught.value.audit.unbalanced == (pool,)


@pytest.mark.parametrize("pool", ["pages", "rows", "states"])
def test_in_production_a_leak_is_noted_when_the_scheduler_is_idle_and_it_serves_on(pool: str) -> None:
    one = scheduler(checked=False, states=6)
    add(one, 2)
    one.step()
    leak(one, pool)
    assert one.state.kv.unbalanced is None
    while one.state.requests:
        one.step()
    noted = one.state.kv.unbalanced
    assert noted is not None
    assert noted.unbalanced == (pool,)
    add(one, 1)
    finished = []
    while one.state.requests:
        finished += one.step().outputs
    assert len(finished) == 1
    assert one.state.kv.unbalanced is noted


@pytest.mark.parametrize("pool", ["pages", "rows", "states"])
def test_nothing_is_at_rest_while_anything_is_held_but_by_the_cache(pool: str) -> None:
    one = scheduler(checked=False, states=6)
    add(one, 2)
    while one.state.requests:
        one.step()
    assert one.state.kv.at_rest
    leak(one, pool)
    assert not one.state.kv.at_rest


def leak(one: Scheduler, pool: str) -> int:
    taken = one.state.kv.pools()[pool].take(1)
    assert taken is not None
    return int(np.frombuffer(taken, np.int32)[0])
