"""Each decision at a release point follows its policy and its guards, and is on record with real bytes."""

from __future__ import annotations

import io
import json

import pytest
import torch

from devicekit.contract.errors import HookError
from devicekit.contract.hooks import hookimpl
from devicekit.contract.manifest import Manifest
from devicekit.contract.records import ErrorKind
from devicekit.device import Device, available_memory, get_device
from devicekit.registry import register_backend, unregister_backend
from devicekit.release import (
    PointCounters,
    ReleasePoint,
    ReleasePoints,
    ReleasePolicy,
    SkipReason,
    always,
    interval,
    never,
    on_request,
    when_reclaimable,
)
from devicekit.testing import MIB, Fault, MockClock, Raise, Simulator
from tests.required import Required

FLUSH, IDLE = ReleasePoint.FLUSH, ReleasePoint.IDLE


def leave_cached(device: Device, size: int = 24 * MIB) -> None:
    """Have the allocator reserve ``size`` bytes that nothing uses."""
    torch.empty(size, dtype=torch.uint8, device=device.torch_device)


def test_emptying_gives_back_what_the_allocator_held_and_says_how_much(sim_device: Device) -> None:
    leave_cached(sim_device)
    releases = ReleasePoints(sim_device)
    entry = releases.reach(FLUSH)
    assert entry
    assert (entry.reserved_before, entry.reserved_after) == (24 * MIB, 0)
    assert entry.released == entry.reclaimable == 24 * MIB
    assert sim_device.memory_stats().reserved == 0
    assert releases.counters[FLUSH].released == 24 * MIB


@pytest.mark.parametrize(
    ("policy", "requested", "reason"),
    [
        (always(), None, None),
        (always(), False, None),
        (never(), True, SkipReason.NEVER),
        (on_request(default=True), None, None),
        (on_request(default=True), False, SkipReason.NOT_REQUESTED),
        (on_request(default=False), None, SkipReason.NOT_REQUESTED),
        (on_request(default=False), True, None),
        (when_reclaimable(24 * MIB), None, None),
        (when_reclaimable(24 * MIB + 1), None, SkipReason.TOO_LITTLE),
        (interval(10.0), True, SkipReason.TOO_SOON),
    ],
)
def test_a_policy_decides(
    sim_device: Device, policy: ReleasePolicy, requested: bool | None, reason: SkipReason | None
) -> None:
    leave_cached(sim_device)
    releases = ReleasePoints(sim_device, {FLUSH: policy}, MockClock())
    entry = releases.reach(FLUSH, requested)
    assert (entry.emptied, entry.reason) == (reason is None, reason)
    assert sim_device.memory_stats().reserved == (0 if reason is None else 24 * MIB)
    assert releases.ledger[-1] is entry
    counters = releases.counters[FLUSH]
    assert (counters.emptied, counters.skipped) == ((1, 0) if reason is None else (0, 1))


def test_what_cannot_be_given_back_does_not_count_as_reclaimable(sim_device: Device) -> None:
    parts = [torch.empty(4 * MIB, dtype=torch.uint8, device=sim_device.torch_device) for _ in range(5)]
    del parts[1:]  # 16 MiB of one 20 MiB segment are free, and its first part keeps all of it
    releases = ReleasePoints(sim_device, {FLUSH: when_reclaimable(1)})
    stats = sim_device.memory_stats()
    assert stats.reserved is not None
    assert stats.allocated is not None
    assert stats.reserved - stats.allocated == 16 * MIB
    assert releases.reach(FLUSH).reason is SkipReason.TOO_LITTLE
    parts.clear()
    assert releases.reach(FLUSH).released == 20 * MIB


def test_an_interval_is_exceeded_not_met_and_starts_anew_with_each_release(sim_device: Device) -> None:
    leave_cached(sim_device)
    clock = MockClock()
    releases = ReleasePoints(sim_device, {IDLE: interval(30)}, clock)
    clock.advance(30)
    assert not releases.reach(IDLE)
    clock.advance(0.5)
    assert releases.reach(IDLE)
    clock.advance(30)
    assert not releases.reach(IDLE)
    clock.advance(0.5)
    assert releases.reach(IDLE)


def test_a_minimum_interval_holds_whatever_the_policy_says(sim_device: Device) -> None:
    leave_cached(sim_device)
    clock = MockClock()
    releases = ReleasePoints(sim_device, {FLUSH: always().at_most_every(5)}, clock)
    assert releases.reach(FLUSH)  # the first waits for nothing
    clock.advance(4.5)
    assert releases.reach(FLUSH).reason is SkipReason.TOO_SOON
    assert releases.reach(ReleasePoint.CONTINUE)  # each point has its own
    clock.advance(0.5)
    assert releases.reach(FLUSH)


def test_never_while_a_graph_is_captured_and_that_uses_up_no_interval(sim_device: Device) -> None:
    leave_cached(sim_device)
    clock = MockClock()
    releases = ReleasePoints(sim_device, {IDLE: interval(10)}, clock)
    clock.advance(11)
    graph = sim_device.create_graph()
    with graph.capture():
        assert releases.reach(IDLE).reason is SkipReason.CAPTURING
        assert releases.reach(FLUSH).reason is SkipReason.CAPTURING
    assert releases.reach(IDLE)


def test_never_before_anything_was_allocated(sim_machine: Simulator, sim_device: Device) -> None:
    releases = ReleasePoints(sim_device)
    assert releases.reach(FLUSH).reason is SkipReason.NOTHING_ALLOCATED
    assert not sim_machine.initialized


def test_a_dry_run_reports_and_keeps_everything(sim_device: Device) -> None:
    leave_cached(sim_device)
    releases = ReleasePoints(sim_device, dry_run=True)
    entry = releases.reach(FLUSH)
    assert (entry.emptied, entry.reason, entry.reclaimable) == (False, SkipReason.DRY_RUN, 24 * MIB)
    assert sim_device.memory_stats().reserved == 24 * MIB
    assert releases.counters[FLUSH] == PointCounters(skipped=1, would_release=24 * MIB)
    # What another policy refuses is no part of what would have happened.
    assert releases.reach(ReleasePoint.WEIGHT_UPDATE).reason is SkipReason.NOT_REQUESTED


def test_a_failure_is_raised_and_on_record(sim_machine: Simulator, sim_device: Device) -> None:
    leave_cached(sim_device)
    releases = ReleasePoints(sim_device)
    fault = Fault("empty_cache", Raise(lambda: RuntimeError("the driver says no")))
    with sim_machine.inject(fault), pytest.raises(HookError, match="the driver says no"):
        releases.reach(FLUSH)
    assert releases.ledger[-1].reason is SkipReason.FAILED
    assert releases.counters[FLUSH].skipped == 1


def test_emptying_changes_no_tensor(sim_device: Device) -> None:
    kept = torch.arange(1000, device=sim_device.torch_device)
    leave_cached(sim_device)
    ReleasePoints(sim_device).reach(FLUSH)
    assert torch.equal(kept.cpu(), torch.arange(1000))


def test_an_idle_engine_does_not_crowd_out_the_ledger(sim_device: Device) -> None:
    leave_cached(sim_device)
    releases = ReleasePoints(sim_device, {IDLE: interval(30)}, MockClock(), keep=4)
    releases.reach(FLUSH)
    for _ in range(100):
        releases.reach(IDLE)
    assert [entry.point for entry in releases.ledger] == [FLUSH]
    assert releases.counters[IDLE].skipped == 100
    for _ in range(9):
        releases.reach(FLUSH)
    assert len(releases.ledger) == 4


def test_the_ledger_answers_questions_and_exports_lines(sim_device: Device) -> None:
    leave_cached(sim_device)
    clock = MockClock()
    releases = ReleasePoints(sim_device, clock=clock)
    releases.reach(FLUSH)
    clock.advance(10)
    releases.reach(ReleasePoint.WEIGHT_UPDATE)
    releases.reach(FLUSH, False)
    ledger = releases.ledger
    assert [entry.at for entry in ledger.query(point=FLUSH)] == [0, 10]
    assert [entry.point for entry in ledger.query(since=10)] == [ReleasePoint.WEIGHT_UPDATE, FLUSH]
    assert len(ledger.query(emptied=True)) == 1
    lines = [json.loads(line) for line in io.StringIO(ledger.json_lines())]
    assert lines[0]["point"] == "flush"
    assert lines[0]["released"] == 24 * MIB
    assert lines[1]["reason"] == "not requested"
    assert len(ledger.json_lines(point=FLUSH, since=5).splitlines()) == 1


class Bare(Required):
    """A backend with the required hooks, and no idea of errors."""

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return None


def test_a_backend_that_cannot_empty_says_so() -> None:
    table = {"name": "bare", "device_type": "cpu", "contract": ">=1.0,<2", "indexed": False}
    register_backend(Bare, Manifest.parse({"backend": table}))
    try:
        releases = ReleasePoints(get_device("bare"), {IDLE: when_reclaimable(1)})
        entry = releases.reach(FLUSH)
        assert (bool(entry), entry.reason, entry.released) == (False, SkipReason.UNSUPPORTED, None)
        assert releases.reach(IDLE).reason is SkipReason.UNKNOWN
    finally:
        unregister_backend("bare")


def test_asking_for_available_memory_empties_only_when_told_to(sim_device: Device) -> None:
    leave_cached(sim_device)
    releases = ReleasePoints(sim_device)
    before = available_memory(sim_device, releases=releases)
    assert releases.ledger[-1].reason is SkipReason.NOT_REQUESTED
    assert before.driver_free == 232 * MIB
    after = available_memory(sim_device, releases=releases, empty_cache=True)
    assert releases.ledger[-1].released == 24 * MIB
    assert after.driver_free == 256 * MIB
    assert after.reusable == before.reusable
