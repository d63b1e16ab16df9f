"""Where the scheduler empties the cache, where it does not, and that paused or busy is not idle."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from bench.scheduler import ConstantRunner
from devicekit.device import Device
from devicekit.release import ReleaseEntry, ReleasePoint, ReleasePoints, always, interval, points
from devicekit.scheduling.messages import Continue, Flush, Operation, Pause, PauseMode, Reply
from devicekit.scheduling.request import Request, SamplingParams, prompt_array
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from devicekit.testing import MIB, Fault, LoseDevice, MockClock, Raise, Simulator


@dataclass
class Rig:
    """A scheduler on the simulated accelerator, driven by hand."""

    scheduler: Scheduler
    device: Device
    clock: MockClock

    def leave_cached(self) -> None:
        torch.empty(4 * MIB, dtype=torch.uint8, device=self.device.torch_device)

    @property
    def reserved(self) -> int | None:
        return self.device.memory_stats().reserved

    def perform(self, operation: Operation) -> Reply:
        self.scheduler.post(operation)
        for _ in range(100):
            for reply in self.scheduler.step().replies:
                if reply.id == operation.id:
                    return reply
        raise AssertionError(f"no answer to {operation}")

    def release(self, operation: Operation) -> ReleaseEntry | None:
        reply = self.perform(operation)
        assert reply.success, reply
        entry = reply.release  # type: ignore[attr-defined]  # of each reply that is asked here
        assert entry is None or isinstance(entry, ReleaseEntry)
        return entry

    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.scheduler.step()

    @property
    def emptied(self) -> list[ReleasePoint]:
        return [entry.point for entry in self.scheduler.state.releases.ledger.query(emptied=True)]


@pytest.fixture
def rig(sim_device: Device) -> Rig:
    clock = MockClock()
    releases = ReleasePoints(sim_device, {ReleasePoint.IDLE: interval(30)}, clock)
    limits = SchedulerLimits(num_pages=64)
    scheduler = Scheduler(ConstantRunner(600), sim_device, limits, clock=clock, releases=releases)
    rig = Rig(scheduler, sim_device, clock)
    rig.leave_cached()
    return rig


def request(tokens: int) -> Request:
    return Request("r", prompt_array([5, 6]), SamplingParams(max_new_tokens=tokens, temperature=0.0))


def test_a_flush_empties_unless_told_not_to(rig: Rig) -> None:
    assert not rig.release(Flush("a", empty_cache=False))
    assert rig.reserved == 20 * MIB
    entry = rig.release(Flush("b"))
    assert entry is not None
    assert entry.released == 20 * MIB


def test_continuing_empties_by_default_while_still_paused(rig: Rig) -> None:
    assert not rig.release(Continue("early"))  # nothing was paused
    rig.perform(Pause("p", PauseMode.IN_PLACE))
    entry = rig.release(Continue("c"))
    assert entry is not None
    assert (entry.reserved_before, entry.reserved_after) == (20 * MIB, 0)
    rig.leave_cached()
    rig.perform(Pause("q", PauseMode.IN_PLACE))
    assert not rig.release(Continue("d", empty_cache=False))
    assert rig.reserved == 20 * MIB


def test_an_idle_engine_empties_when_the_interval_is_exceeded_on_the_schedulers_clock(rig: Rig) -> None:
    rig.tick(30)
    assert rig.emptied == []
    rig.tick(0.1)
    assert rig.emptied == [ReleasePoint.IDLE]
    assert rig.reserved == 0
    for _ in range(29):
        rig.tick(1)
    assert len(rig.emptied) == 1
    rig.tick(2)
    assert len(rig.emptied) == 2


def test_a_paused_engine_does_not_empty_and_the_pause_uses_up_no_interval(rig: Rig) -> None:
    rig.perform(Pause("p"))
    rig.tick(100)
    assert rig.emptied == []
    rig.perform(Continue("c", empty_cache=False))
    rig.scheduler.step()
    assert rig.emptied == [ReleasePoint.IDLE]


def test_a_busy_engine_does_not_empty(rig: Rig) -> None:
    rig.scheduler.add(request(tokens=3))
    rig.tick(100)
    assert rig.emptied == []
    while rig.scheduler.state.requests:
        rig.scheduler.step()
    assert rig.emptied == [ReleasePoint.IDLE]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), torch.OutOfMemoryError("no room")], ids=repr)
def test_an_idle_point_that_fails_ends_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ReleasePoints, "reach", fail)
    rig.tick(100)
    assert rig.scheduler.state.healthy
    rig.scheduler.add(request(tokens=3))
    while rig.scheduler.state.requests:
        rig.scheduler.step()


def test_idle_is_off_until_it_is_set(sim_device: Device) -> None:
    clock = MockClock()
    scheduler = Scheduler(ConstantRunner(600), sim_device, SchedulerLimits(num_pages=64), clock=clock)
    rig = Rig(scheduler, sim_device, clock)
    rig.leave_cached()
    rig.tick(1e6)
    assert rig.reserved == 20 * MIB


def test_the_environment_sets_it(sim_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICEKIT_RELEASE_IDLE", "interval:10")
    clock = MockClock()
    scheduler = Scheduler(ConstantRunner(600), sim_device, SchedulerLimits(num_pages=64), clock=clock)
    rig = Rig(scheduler, sim_device, clock)
    rig.leave_cached()
    rig.tick(11)
    assert rig.reserved == 0


def test_a_backend_that_fails_to_empty_while_idle_ends_nothing(sim_machine: Simulator, rig: Rig) -> None:
    with sim_machine.inject(Fault("empty_cache", Raise(lambda: RuntimeError("busy")))) as script:
        rig.tick(31)
    assert len(script.hits) == 1
    assert rig.scheduler.state.healthy
    rig.tick(31)
    assert rig.emptied == [ReleasePoint.IDLE]


def test_a_device_found_lost_while_idle_is_known_to_be_lost(sim_machine: Simulator, rig: Rig) -> None:
    with sim_machine.inject(Fault("empty_cache", LoseDevice())):
        rig.tick(31)
        rig.tick(31)
    assert not rig.scheduler.state.healthy
    assert rig.scheduler.state.releases.counters[ReleasePoint.IDLE].skipped == 1


# -- A request that failed ------------------------------------------------------------------------------------


def fail_once(rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception, left: int) -> None:
    """Run a request whose forward pass leaves memory in the cache, and fails."""

    def step(batch: object) -> None:
        torch.empty(left, dtype=torch.uint8, device=rig.device.torch_device)
        raise error

    monkeypatch.setattr(rig.scheduler.state.runner, "step", step)
    rig.scheduler.add(request(tokens=3))
    while rig.scheduler.state.requests:
        rig.scheduler.step()


@pytest.mark.parametrize(("large", "emptied"), [(8 * MIB, True), (64 * MIB, False)])
def test_a_failed_request_has_its_memory_given_back_when_it_was_a_large_one(
    sim_device: Device, monkeypatch: pytest.MonkeyPatch, large: int, emptied: bool
) -> None:
    monkeypatch.setattr(points, "LARGE", large)
    releases = ReleasePoints(sim_device, clock=MockClock())
    scheduler = Scheduler(ConstantRunner(600), sim_device, SchedulerLimits(num_pages=64), releases=releases)
    rig = Rig(scheduler, sim_device, MockClock())
    fail_once(rig, monkeypatch, RuntimeError("a bug"), 16 * MIB)
    assert rig.emptied == ([ReleasePoint.REQUEST_FAILED] if emptied else [])
    [entry] = releases.ledger.query(point=ReleasePoint.REQUEST_FAILED)
    assert entry.emptied is emptied


def test_a_policy_overrides_it(sim_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = ReleasePoints(sim_device, {ReleasePoint.REQUEST_FAILED: always()}, MockClock())
    scheduler = Scheduler(ConstantRunner(600), sim_device, SchedulerLimits(num_pages=64), releases=releases)
    rig = Rig(scheduler, sim_device, MockClock())
    fail_once(rig, monkeypatch, RuntimeError("a bug"), MIB)
    assert rig.emptied == [ReleasePoint.REQUEST_FAILED]


def test_running_out_of_memory_has_a_point_of_its_own(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_once(rig, monkeypatch, torch.OutOfMemoryError("no room"), MIB)
    ledger = rig.scheduler.state.releases.ledger
    assert ledger.query(point=ReleasePoint.REQUEST_FAILED) == []
    assert ReleasePoint.OUT_OF_MEMORY in rig.emptied
