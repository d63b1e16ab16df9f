"""A forward pass that runs out of memory is retried, then made smaller, then given up, and nobody else pays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from devicekit.device import Device
from devicekit.release import ReleasePoint
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.messages import Output
from devicekit.scheduling.request import FinishKind, Request, SamplingParams, prompt_array
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from devicekit.testing import MIB, Fault, LoseDevice, OutOfMemory, SimConfig, Simulator

TIGHT = pytest.mark.parametrize("sim_machine", [SimConfig(capacity=64 * MIB)], indirect=True)


LONG = 80


class HungryRunner:
    """Needs a mebibyte of the device for each token of a pass, and more than there is for a long request.

    It says each request's next number.
    """

    def __init__(self, device: Device) -> None:
        self.limits = ModelLimits(1000, 400, frozenset())
        self.passes: list[int] = []
        self._device = device.torch_device

    def step(self, batch: ForwardBatch) -> StepOutput:
        self.passes.append(len(batch.input_ids))
        mebibytes = 100 if batch.seq_lens.max() > LONG else len(batch.input_ids)
        activations = torch.empty(mebibytes * MIB, dtype=torch.uint8, device=self._device)
        activations[0] = 1
        return StepOutput((np.asarray(batch.input_ids)[batch.logits_indices] + 1).astype(np.int32))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


@pytest.fixture
def runner(sim_device: Device) -> HungryRunner:
    return HungryRunner(sim_device)


@pytest.fixture
def scheduler(runner: HungryRunner, sim_device: Device) -> Scheduler:
    return Scheduler(runner, sim_device, SchedulerLimits(num_pages=200, max_batch_tokens=200))


def request(name: str, size: int, tokens: int = 4, first: int = 1) -> Request:
    prompt = prompt_array([first, *range(2, size + 1)])
    return Request(name, prompt, SamplingParams(max_new_tokens=tokens, temperature=0.0))


def finish(scheduler: Scheduler) -> dict[str, Output]:
    done: dict[str, Output] = {}
    for _ in range(200):
        done.update({output.id: output for output in scheduler.step().outputs if output.finish is not None})
        if not scheduler.state.requests:
            return done
    raise AssertionError(f"requests that never end: {list(scheduler.state.requests)}")


def test_a_pass_that_failed_once_is_run_again(
    sim_machine: Simulator, scheduler: Scheduler, runner: HungryRunner
) -> None:
    scheduler.add(request("a", 8))
    with sim_machine.inject(Fault("allocate", OutOfMemory(), nth=1)):
        done = finish(scheduler)
    assert done["a"].tokens == (9, 10, 11, 12)
    assert runner.passes == [8, 8, 1, 1, 1]
    (entry,) = scheduler.state.releases.ledger.query(point=ReleasePoint.OUT_OF_MEMORY)
    assert entry


@TIGHT
def test_a_batch_that_is_too_large_for_the_device_is_split(
    scheduler: Scheduler, runner: HungryRunner
) -> None:
    for number in range(4):
        scheduler.add(request(f"r{number}", 30, first=40 + number))
    done = finish(scheduler)
    assert runner.passes[:3] == [120, 120, 60]
    assert max(runner.passes[2:]) == 60
    assert [output.tokens for output in done.values()] == [(31, 32, 33, 34)] * 4


@TIGHT
def test_a_prompt_that_is_too_large_for_the_device_is_computed_in_parts(
    scheduler: Scheduler, runner: HungryRunner
) -> None:
    scheduler.add(request("a", LONG - 4))
    assert finish(scheduler)["a"].tokens == (77, 78, 79, 80)
    assert runner.passes == [76, 76, 38, 38, 1, 1, 1]


def test_running_requests_give_way_when_not_even_one_token_of_each_fits(
    sim_machine: Simulator, scheduler: Scheduler, runner: HungryRunner
) -> None:
    for number in range(4):
        scheduler.add(request(f"r{number}", 8))
    scheduler.step()
    with sim_machine.inject(Fault("allocate", OutOfMemory(), times=2)):
        scheduler.step()
    assert len(scheduler.state.running) == 2
    done = finish(scheduler)
    assert runner.passes[:4] == [32, 4, 4, 2]
    assert [output.tokens for output in done.values()] == [(9, 10, 11, 12)] * 4
    assert sorted(output.retractions for output in done.values()) == [0, 0, 1, 1]


@TIGHT
def test_a_request_that_cannot_fit_fails_alone_and_says_what_was_free(
    scheduler: Scheduler, sim_device: Device
) -> None:
    scheduler.add(request("long", LONG + 20))
    scheduler.add(request("short", 10))
    done = finish(scheduler)
    failed = done["long"].finish
    assert failed is not None
    assert failed.kind is FinishKind.ERROR
    assert f"{100 * MIB} bytes" in failed.message
    assert (
        f"Out of memory in the forward pass: {64 * MIB} bytes of {64 * MIB} bytes were free" in failed.message
    )
    assert done["short"].tokens == (11, 12, 13, 14)
    assert sim_device.memory_stats().allocated == 0
    assert scheduler.state.kv.available == 200


@TIGHT
def test_larger_passes_come_back_once_smaller_ones_went_well(
    scheduler: Scheduler, runner: HungryRunner
) -> None:
    scheduler.add(request("a", 76, tokens=2))
    finish(scheduler)
    for number in range(80):
        scheduler.add(request(f"r{number}", 5, tokens=2))
        finish(scheduler)
    runner.passes.clear()
    for number in range(12):
        scheduler.add(request(f"s{number}", 5, tokens=2))
    finish(scheduler)
    assert runner.passes[0] == 60


def test_a_lost_device_ends_everything_after_one_attempt(
    sim_machine: Simulator, scheduler: Scheduler, runner: HungryRunner
) -> None:
    scheduler.add(request("a", 8))
    scheduler.add(request("b", 8))
    with sim_machine.inject(Fault("allocate", LoseDevice())):
        done = finish(scheduler)
        scheduler.step()
    assert runner.passes == [16]
    assert not scheduler.state.healthy
    assert {output.finish.kind for output in done.values() if output.finish} == {FinishKind.ERROR}
    assert len(done) == 2
