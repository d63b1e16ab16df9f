"""The cache is emptied after a large component left, and only then: by measured bytes, on any backend."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from devicekit.device import Device, get_device
from devicekit.release import ReleasePoint, ReleasePoints, SkipReason, never
from devicekit.residency import (
    ComponentOffload,
    ComponentUse,
    LargeReleaseRule,
    LayerwiseOffload,
    Released,
    ReleaseDecision,
    RequestReport,
    Residency,
    Resident,
    SnapshotOffload,
    Stage,
)
from devicekit.residency.components import Mode
from devicekit.testing import KIB, MIB, Simulator

SIZE = 64 * KIB
LARGE = LargeReleaseRule(large=SIZE)
LEFT = Released(
    left=SIZE,
    remaining=0,
    layerwise=False,
    cached_before=0,
    cached_after=SIZE,
    driver_free=MIB,
    next_need=0,
)


@pytest.mark.parametrize(
    ("use", "changes", "neighbour", "decision"),
    [
        ({}, {}, False, ReleaseDecision.MEASURED),
        ({}, {"left": SIZE - 1, "cached_after": SIZE - 1}, False, ReleaseDecision.SMALL),
        # What the stage's activations left in the cache counts as well as the component.
        ({}, {"left": KIB}, False, ReleaseDecision.MEASURED),
        # What was in the cache before it came was not left by it.
        ({}, {"left": KIB, "cached_before": SIZE}, False, ReleaseDecision.SMALL),
        # What went back to the driver by itself needs no emptying.
        ({}, {"cached_after": 0}, False, ReleaseDecision.SMALL),
        ({}, {"cached_before": None, "cached_after": None}, False, ReleaseDecision.MEASURED),
        ({}, {"left": 0}, False, ReleaseDecision.STAYED),
        ({}, {"remaining": 1}, False, ReleaseDecision.STAYED),
        ({}, {"left": 0, "remaining": SIZE, "layerwise": True}, False, ReleaseDecision.MEASURED),
        ({"memory_intensive": True}, {"left": 1, "cached_after": 1}, False, ReleaseDecision.HINTED),
        ({"memory_intensive": True}, {"left": 0}, False, ReleaseDecision.STAYED),
        ({"memory_intensive": False}, {}, False, ReleaseDecision.HINTED_SMALL),
        ({"skip_empty_cache_on_release": True}, {}, False, ReleaseDecision.SKIPPED),
        ({"memory_intensive": True, "skip_empty_cache_on_release": True}, {}, False, ReleaseDecision.SKIPPED),
        ({}, {}, True, ReleaseDecision.NEIGHBOUR),
        ({"memory_intensive": True}, {}, True, ReleaseDecision.HINTED),
        ({}, {"left": 1, "cached_after": 1, "next_need": 2 * MIB}, False, ReleaseDecision.NEXT_NEED),
        ({}, {"left": 1, "cached_after": 1, "next_need": MIB}, False, ReleaseDecision.SMALL),
    ],
)
def test_decision(
    use: dict[str, bool], changes: dict[str, int | None], neighbour: bool, decision: ReleaseDecision
) -> None:
    measured = dataclasses.replace(LEFT, **changes)
    decided = LARGE.decide(ComponentUse("a", **use), measured, neighbour=neighbour)
    assert decided is decision
    assert decided.empties is (decision.name in ("MEASURED", "HINTED", "NEXT_NEED"))


def run(residency: Residency, *uses: ComponentUse) -> RequestReport:
    with residency.request([Stage(str(number), (use,)) for number, use in enumerate(uses)]) as report:
        for number in range(len(uses)):
            with residency.stage(str(number)):
                pass
    return report


@pytest.mark.parametrize("mode", [ComponentOffload(), SnapshotOffload()])
def test_a_large_component_that_left_is_one_emptying(
    parts: dict[str, nn.Module], sim_device: Device, mode: Mode
) -> None:
    releases = ReleasePoints(sim_device)
    residency = Residency(parts, sim_device, {"all": mode}, releases=releases, rule=LARGE)
    report = run(residency, ComponentUse("encoder"))
    (release,) = report.releases
    assert (release.measured.left, release.decision) == (SIZE, ReleaseDecision.MEASURED)
    assert report.reclaimed("0") == report.reclaimed() == release.reclaimed == SIZE
    assert sim_device.memory_stats().reserved == 0
    assert releases.counters[ReleasePoint.COMPONENT].emptied == 1


def test_a_small_component_is_none(parts: dict[str, nn.Module], sim_device: Device) -> None:
    residency = Residency(parts, sim_device, {"all": SnapshotOffload()}, rule=LargeReleaseRule(SIZE + 1))
    (release,) = run(residency, ComponentUse("encoder")).releases
    assert release.decision is ReleaseDecision.SMALL
    assert release.entry.reason is SkipReason.NOT_REQUESTED
    assert sim_device.memory_stats().reserved == SIZE


def test_a_resident_component_is_none(parts: dict[str, nn.Module], sim_device: Device) -> None:
    residency = Residency(parts, sim_device, {"all": Resident()}, rule=LARGE)
    assert run(residency, ComponentUse("encoder", memory_intensive=True)).releases == []
    assert residency.on_device("encoder") == SIZE


def test_layerwise_offload_is_one(sim_device: Device) -> None:
    parts = {"transformer": nn.ModuleList(nn.Linear(128, 128, bias=False) for _ in range(3))}
    residency = Residency(parts, sim_device, {"transformer": LayerwiseOffload()}, rule=LARGE)
    (release,) = run(residency, ComponentUse("transformer", memory_intensive=True)).releases
    assert release.measured.layerwise
    assert release.entry


def test_a_neighbour_that_is_kept_ready_is_none(parts: dict[str, nn.Module], sim_device: Device) -> None:
    residency = Residency(parts, sim_device, {"all": SnapshotOffload()}, rule=LARGE)
    report = run(residency, ComponentUse("encoder", keep_after_request=True), ComponentUse("decoder"))
    assert [release.decision for release in report.releases] == [ReleaseDecision.NEIGHBOUR]
    assert residency.on_device("encoder") == SIZE


def test_a_module_that_is_partly_on_the_host_is_measured_whole(sim_device: Device) -> None:
    # Its first parameter says "host" while nearly all of it is on the device.
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(128, 128, bias=False))
    residency = Residency({"encoder": module}, sim_device, {"encoder": ComponentOffload()}, rule=LARGE)
    with residency.request([Stage("0", (ComponentUse("encoder"),))]) as report, residency.stage("0"):
        module[0].to("cpu")
        assert residency.on_device("encoder") == SIZE
    (release,) = report.releases
    assert (release.measured.left, release.decision) == (SIZE, ReleaseDecision.MEASURED)


def test_the_policy_has_the_last_word(parts: dict[str, nn.Module], sim_device: Device) -> None:
    releases = ReleasePoints(sim_device, {ReleasePoint.COMPONENT: never()})
    residency = Residency(parts, sim_device, {"all": SnapshotOffload()}, rule=LARGE, releases=releases)
    (release,) = run(residency, ComponentUse("encoder")).releases
    assert release.decision is ReleaseDecision.MEASURED
    assert release.entry.reason is SkipReason.NEVER
    assert release.reclaimed == 0


def test_room_is_made_for_the_next_component(sim_machine: Simulator, sim_device: Device) -> None:
    parts = {"encoder": nn.Linear(128, 128, bias=False), "decoder": nn.Linear(256, 256, bias=False)}
    residency = Residency(parts, sim_device, {"all": SnapshotOffload()})
    with sim_machine.other_process(256 * MIB - 5 * SIZE):
        report = run(residency, ComponentUse("encoder"), ComponentUse("decoder"))
    assert [release.decision for release in report.releases] == [
        ReleaseDecision.SMALL,
        ReleaseDecision.SMALL,
    ]
    sim_device.empty_cache()
    with sim_machine.other_process(256 * MIB - 4 * SIZE):
        report = run(residency, ComponentUse("encoder"), ComponentUse("decoder"))
    assert report.releases[0].decision is ReleaseDecision.NEXT_NEED


@pytest.mark.parametrize("sim_machine", [{"unified_memory": True}], indirect=True)
def test_one_memory_for_all_is_emptied_when_the_request_ends(
    parts: dict[str, nn.Module], sim_device: Device
) -> None:
    residency = Residency(parts, sim_device, {"all": SnapshotOffload()})
    run(residency, ComponentUse("encoder"))
    assert [entry.emptied for entry in residency.releases.ledger] == [False, True]
    assert sim_device.memory_stats().reserved == 0


def test_on_the_host_nothing_moves_and_nothing_is_emptied(parts: dict[str, nn.Module]) -> None:
    residency = Residency(parts, get_device("cpu"), {"all": SnapshotOffload()}, rule=LARGE)
    before = parts["encoder"].weight.data_ptr()
    report = run(residency, ComponentUse("encoder", memory_intensive=True))
    assert residency.synchronous
    assert report.synchronous
    assert (report.releases, report.bytes_in, report.bytes_out) == ([], 0, 0)
    assert parts["encoder"].weight.data_ptr() == before
    assert len(residency.releases.ledger) == 0
    assert torch.device("cpu") == parts["encoder"].weight.device
