"""Copies between host and device: what can be seen when, and what goes wrong when nobody waits."""

from __future__ import annotations

import math
import random

import pytest
import torch

from devicekit.testing import Simulator
from tests.seeds import drawn_seed

pytestmark = pytest.mark.usefixtures("machine")


def test_a_blocking_copy_has_happened_when_it_returns(machine: Simulator) -> None:
    x = torch.arange(6.0)
    there = x.to("sim")
    assert torch.sim.current_stream().query()
    assert torch.equal(there.cpu(), x)


def test_the_host_waits_for_values_and_for_copies_that_are_not_queued(machine: Simulator) -> None:
    there = torch.arange(3.0, device="sim")
    with machine.inject() as script:
        there.copy_(torch.ones(3), non_blocking=True)  # pageable memory is read at once
        there.copy_(torch.ones(3).pin_memory(), non_blocking=True)
        there.to("cpu", non_blocking=True)
        there.sum()
        assert script.seen["wait"] == 0
        there.sum().item()
        there.copy_(torch.ones(3))
        there.cpu()
        assert script.seen["wait"] == 3


def test_a_copy_takes_latency_and_bandwidth(machine: Simulator) -> None:
    data = torch.zeros(1 << 20, dtype=torch.uint8)
    before = machine.clock.now()
    destination = torch.empty_like(data, device="sim")
    destination.copy_(data)
    assert machine.clock.now() - before == pytest.approx(machine.config.copy_seconds(1 << 20))


def test_bytes_copied_to_the_host_without_waiting_arrive_only_when_the_copy_is_done(
    machine: Simulator,
) -> None:
    there = torch.full((4,), 7.0, device="sim")
    torch.sim.synchronize()
    here = there.to("cpu", non_blocking=True)
    done = torch.sim.current_stream().record_event()
    assert here.is_pinned()
    assert all(math.isnan(value) for value in here.tolist())
    assert not done.query()
    done.synchronize()
    assert here.tolist() == [7.0] * 4


def test_moving_the_clock_is_enough_for_a_copy_to_arrive(machine: Simulator) -> None:
    here = torch.zeros(4).pin_memory()
    here.copy_(torch.ones(4, device="sim"), non_blocking=True)
    assert here.tolist() == [0.0] * 4
    machine.clock.advance(1.0)
    assert here.tolist() == [1.0] * 4


def test_a_copy_to_the_host_carries_the_bytes_of_its_place_in_the_stream() -> None:
    there = torch.ones(4, device="sim")
    here = there.to("cpu", non_blocking=True)
    there.fill_(2.0)
    torch.sim.synchronize()
    assert here.tolist() == [1.0] * 4


def test_later_work_in_the_same_stream_sees_what_was_copied_to_the_device() -> None:
    there = torch.ones(4).pin_memory().to("sim", non_blocking=True)
    assert (there + 1).cpu().tolist() == [2.0] * 4


def test_a_source_that_is_overwritten_before_its_copy_ran_is_copied_wrong() -> None:
    source = torch.ones(4).pin_memory()
    there = source.to("sim", non_blocking=True)
    source.zero_()
    torch.sim.synchronize()
    assert there.cpu().tolist() == [0.0] * 4


def test_a_pageable_source_is_read_at_once() -> None:
    source = torch.ones(4)
    there = source.to("sim", non_blocking=True)
    source.zero_()
    assert there.cpu().tolist() == [1.0] * 4


def test_a_copy_to_pageable_memory_waits_even_if_asked_not_to() -> None:
    here = torch.zeros(4)
    here.copy_(torch.ones(4, device="sim"), non_blocking=True)
    assert here.tolist() == [1.0] * 4


@pytest.mark.parametrize("ordered", [False, True])
def test_another_stream_sees_copied_bytes_only_if_it_waits(ordered: bool) -> None:
    there = torch.zeros(4, device="sim")
    source = torch.ones(4).pin_memory()
    side = torch.sim.Stream()
    with torch.sim.stream(side):
        there.copy_(source, non_blocking=True)
    if ordered:
        torch.sim.current_stream().wait_stream(side)
    assert (there + 0).cpu().tolist() == [1.0 if ordered else 0.0] * 4


def test_waiting_for_an_event_shows_what_was_before_it_and_nothing_later() -> None:
    before, after = torch.zeros(2, device="sim"), torch.zeros(2, device="sim")
    source = torch.ones(2).pin_memory()
    side = torch.sim.Stream()
    with torch.sim.stream(side):
        before.copy_(source, non_blocking=True)
        event = side.record_event()
        after.copy_(source, non_blocking=True)
    torch.sim.current_stream().wait_event(event)
    seen = before + after
    assert seen.tolist() == [1.0, 1.0]
    torch.sim.synchronize()
    assert after.tolist() == [1.0, 1.0]


def copy_out_on_a_side_stream_then_free_and_reuse(record: bool) -> list[float]:
    there = torch.ones(1024, device="sim")
    torch.sim.synchronize()
    side = torch.sim.Stream()
    with torch.sim.stream(side):
        here = there.to("cpu", non_blocking=True)
    if record:
        there.record_stream(side)
    del there
    torch.zeros(1024, device="sim")
    side.synchronize()
    return sorted({str(value) for value in here.tolist()})  # type: ignore[return-value]  # compared as text


def test_memory_reused_under_a_copy_that_nobody_recorded_spoils_the_copy() -> None:
    assert copy_out_on_a_side_stream_then_free_and_reuse(record=False) == ["nan"]


def test_recording_the_stream_keeps_the_memory_until_the_copy_is_done() -> None:
    assert copy_out_on_a_side_stream_then_free_and_reuse(record=True) == ["1.0"]


def test_copying_out_again_and_again_holds_nothing_of_the_copies_that_are_done() -> None:
    there = torch.ones(4, device="sim")
    for _ in range(100):
        there.to("cpu", non_blocking=True)
        torch.sim.synchronize()
    torch.sim.host_empty_cache()
    assert torch.sim.host_memory_stats()["allocated_bytes.current"] == 0


def test_recorded_memory_is_active_until_the_stream_is_done() -> None:
    there = torch.ones(1024, device="sim")
    torch.sim.synchronize()
    side = torch.sim.Stream()
    torch.sim.busy(1.0, side)
    there.record_stream(side)
    del there
    assert torch.sim.memory_allocated() == 0
    assert torch.sim.memory_stats()["active_bytes.all.current"] == 4096
    torch.sim.synchronize()
    assert torch.sim.memory_stats()["active_bytes.all.current"] == 0


def test_devices_copy_to_each_other_in_order(machine: Simulator) -> None:
    x = torch.arange(4.0, device="sim:0")
    torch.sim.synchronize(0)
    before = machine.clock.now()
    y = x.to("sim:1")
    torch.sim.synchronize(0)
    assert machine.clock.now() - before == pytest.approx(machine.config.copy_seconds(16))
    x.zero_()
    assert y.device.index == 1
    assert y.cpu().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_memory_never_written_to_is_recognisable() -> None:
    assert all(math.isnan(value) for value in torch.empty(3, device="sim").tolist())
    assert torch.empty(3, dtype=torch.int32, device="sim").tolist() == [-1, -1, -1]
    assert torch.empty(2, dtype=torch.bool, device="sim").tolist() == [True, True]


def test_a_copy_changes_type_and_shape_as_on_the_host() -> None:
    x = torch.arange(6.0, device="sim").view(2, 3)
    assert x.to("cpu", torch.int32).dtype == torch.int32
    target = torch.zeros(2, 3, device="sim")
    target.copy_(torch.tensor([1, 2, 3]))
    assert target.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert x.to("meta").shape == (2, 3)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("seed", [drawn_seed("TRANSFER_SEED") + one for one in range(5)])
def test_copies_in_order_through_pinned_memory_are_those_that_nothing_defers(
    machine: Simulator, seed: int, streams: int
) -> None:
    """To the host and back, in parts that overlap, also in streams that wait for each other."""
    draw = random.Random(seed)
    queues = [torch.sim.Stream() for _ in range(streams)]
    host = torch.zeros(12).pin_memory()
    there = torch.arange(12.0).to("sim")
    plain_host, plain_there = torch.zeros(12), torch.arange(12.0)
    last = torch.sim.current_stream()
    for _ in range(40):
        stream = draw.choice(queues)
        stream.wait_stream(last)
        last = stream
        first, other, size = draw.randrange(6), draw.randrange(6), draw.randint(1, 6)
        one, two = slice(first, first + size), slice(other, other + size)
        with torch.sim.stream(stream):
            before = host.clone()
            if draw.random() < 0.5:
                host[one].copy_(there[two], non_blocking=True)
                plain_host[one] = plain_there[two].clone()
            else:
                blocking = draw.random() < 0.1
                there[one].copy_(host[two], non_blocking=not blocking)
                plain_there[one] = plain_host[two].clone()
                assert blocking or torch.equal(host, before)
                there.add_(1)
                plain_there.add_(1)
    torch.sim.synchronize()
    assert torch.equal(there.cpu(), plain_there)
    assert torch.equal(host, plain_host)
