"""`watch` sees what torch's operators allocate, hears of every free, and combines adaptors in any order."""

from __future__ import annotations

import gc
import itertools
import threading

import pytest
import torch

from devicekit import Device
from devicekit.observe import (
    Adaptor,
    Allocation,
    Limit,
    MemoryLimitExceeded,
    OnOutOfMemory,
    Statistics,
    Track,
    settle,
    watch,
)
from devicekit.testing import MIB, Fault, OutOfMemory, Raise, Simulator


class Journal(Adaptor):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def allocated(self, allocation: Allocation) -> None:
        self.events.append(("allocated", allocation.bytes))

    def freed(self, allocation: Allocation, at: float) -> None:
        assert at >= allocation.at
        self.events.append(("freed", allocation.bytes))


@pytest.fixture(params=["sim", "cpu"])
def device(request: pytest.FixtureRequest) -> Device:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Device)
    return found


def test_allocations_and_frees_are_seen_once_and_views_are_not(device: Device) -> None:
    journal = Journal()
    with watch(device, journal):
        one = torch.empty(1024, dtype=torch.uint8, device=device.torch_device)
        view = one.view(2, 512)[0]
        one.add_(1)
        two = one + 1
        del one
        settle()
        assert journal.events == [("allocated", 1024), ("allocated", 1024)]  # the view still holds the first
        del view
        settle()
        assert journal.events[2:] == [("freed", 1024)]
    del two
    settle()
    assert journal.events[3:] == [("freed", 1024)]  # after the block has ended, too


def test_tensors_from_before_and_on_other_devices_are_not_counted(sim: Device) -> None:
    before = torch.ones(64, device=sim.torch_device)
    journal = Journal()
    with watch(sim, journal):
        before.view(8, 8).t()
        torch.ones(64)
        torch.ones(64, device="sim:0")
        before.cpu()
    assert journal.events == []


def test_what_is_seen_agrees_with_the_allocator(sim: Device) -> None:
    statistics = Statistics()
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
    with watch(sim, statistics):
        model.to(sim.torch_device)
        out = model(torch.randn(16, 32, device=sim.torch_device)).softmax(-1).chunk(2)
        assert statistics.overall.bytes.current == sim.memory_stats().requested
        del out
        model.to("cpu")
        gc.collect()
        settle()
        assert statistics.overall.bytes.current == sim.memory_stats().requested == 0
    assert statistics.overall.bytes.total == sim.memory_stats().raw["requested_bytes.all.allocated"]
    assert statistics.overall.bytes.peak == sim.memory_stats().raw["requested_bytes.all.peak"]


def test_a_storage_resized_in_place_counts_with_its_new_size(cpu: Device) -> None:
    statistics = Statistics()
    with watch(cpu, statistics):
        tensor = torch.empty(16, dtype=torch.uint8)
        tensor.resize_(64)
        assert statistics.overall.bytes.current == 64
    assert statistics.overall.count.current == 1


def test_tensors_made_of_python_data_are_seen(device: Device) -> None:
    statistics = Statistics()
    with watch(device, statistics):
        held = torch.tensor([1.0, 2.0], device=device.torch_device)
        assert statistics.overall.bytes.current == held.nbytes
    assert statistics.overall.count.current == 1


def test_a_backward_pass_is_seen(cpu: Device) -> None:
    statistics = Statistics()
    weight = torch.ones(256, requires_grad=True)
    with watch(cpu, statistics):
        (weight * 2).sum().backward()
    settle()
    assert statistics.overall.bytes.current == 4 * 256  # the gradient stays


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("nested", [False, True])
def test_adaptors_work_alike_in_any_order(sim: Device, order: tuple[int, ...], nested: bool) -> None:
    kept = [torch.empty(0)]
    limit, journal, track = Limit(3 * MIB), Journal(), Track()

    def drop(error: Exception, size: int | None, attempt: int) -> bool:
        assert isinstance(error, MemoryLimitExceeded)
        kept.clear()
        return True

    adaptors: list[Adaptor] = [limit, journal, track, OnOutOfMemory(drop)]
    chosen = [adaptors[index] for index in order]

    def work() -> None:
        kept.append(torch.empty(2 * MIB, dtype=torch.uint8, device=sim.torch_device))
        # Over the limit: room is made.
        extra = torch.empty(2 * MIB, dtype=torch.uint8, device=sim.torch_device)
        assert limit.held == track.bytes == extra.nbytes

    if nested:
        with watch(sim, chosen[0]), watch(sim, chosen[1]), watch(sim, chosen[2]), watch(sim, chosen[3]):
            work()
    else:
        with watch(sim, *chosen):
            work()
    settle()
    assert journal.events == [("allocated", 2 * MIB), ("freed", 2 * MIB)] * 2
    assert (limit.held, track.outstanding()) == (0, [])


def test_a_limit_refuses_a_factory_before_it_allocates(sim: Device) -> None:
    limit = Limit(MIB)
    with sim.current(), watch(sim, limit):
        held = torch.zeros(MIB // 2, dtype=torch.uint8, device=sim.torch_device)
        assert limit.left == MIB // 2
        before = sim.memory_stats()
        for make in (
            lambda: torch.empty(MIB, dtype=torch.uint8, device=sim.torch_device),
            lambda: torch.ones(MIB, dtype=torch.uint8).to(sim.torch_device),
            lambda: held.new_full((MIB,), 1),
            lambda: torch.empty(MIB // 4, device="sim"),  # the current device
            lambda: torch.zeros_like(held, dtype=torch.float32),
        ):
            with pytest.raises(MemoryLimitExceeded, match=f"of the {MIB} allowed"):
                make()
        assert sim.memory_stats() == before
        assert held.clone().nbytes == MIB // 2  # exactly at the limit


def test_a_result_over_the_limit_is_dropped_and_never_handed_out(sim: Device) -> None:
    limit = Limit(MIB)
    with watch(sim, limit):
        row = torch.zeros(2048, 1, dtype=torch.uint8, device=sim.torch_device)
        with pytest.raises(torch.OutOfMemoryError):
            row + row.t()
        assert limit.held == 2048
    assert sim.memory_stats().requested == 2048


def test_an_error_of_the_device_itself_is_offered_and_the_operator_tried_again(
    sim: Device, machine: Simulator
) -> None:
    offered: list[int | None] = []

    def take_note(error: Exception, size: int | None, attempt: int) -> bool:
        offered.append(size)
        return True

    with watch(sim, OnOutOfMemory(take_note)), machine.inject(Fault("allocate", OutOfMemory())):
        assert torch.zeros(256, device=sim.torch_device).sum().item() == 0
    assert offered == [1024]


def test_giving_up_raises_the_first_hand_error(sim: Device, machine: Simulator) -> None:
    attempts: list[int] = []

    def never(error: Exception, size: int | None, attempt: int) -> bool:
        attempts.append(attempt)
        return True

    with (
        watch(sim, OnOutOfMemory(never, attempts=3)),
        machine.inject(Fault("allocate", OutOfMemory(), times=None)),
        pytest.raises(torch.OutOfMemoryError),
    ):
        torch.zeros(256, device=sim.torch_device)
    assert attempts == [1, 2, 3]


def test_an_operator_that_writes_is_not_repeated(sim: Device, machine: Simulator) -> None:
    target = torch.zeros(4, device=sim.torch_device)
    with (
        watch(sim, OnOutOfMemory(lambda *_: True)),
        machine.inject(Fault("kernel:aten::add_", Raise(torch.OutOfMemoryError))) as script,
        pytest.raises(torch.OutOfMemoryError),
    ):
        target.add_(1)
    assert len(script.hits) == 1


def test_other_errors_pass_untouched(sim: Device) -> None:
    with (
        watch(sim, OnOutOfMemory(lambda *_: pytest.fail("not out of memory"))),
        pytest.raises(RuntimeError, match="shape"),
    ):
        torch.zeros(3, device=sim.torch_device).view(2)


def test_stacks_lead_to_the_line_that_allocated(device: Device) -> None:
    track = Track()
    with watch(device, track):
        held = _allocate_here(device)
    (one,) = track.outstanding()
    assert one.allocation.bytes == held.nbytes
    assert one.stack[0].function == "_allocate_here"
    assert one.stack[0].file == __file__
    assert "in _allocate_here" in track.report()
    del held
    assert track.report().startswith("0 bytes in 0 allocations")


def _allocate_here(device: Device) -> torch.Tensor:
    return torch.ones(100, device=device.torch_device)


def test_one_adaptor_serves_many_threads_and_a_thread_outside_is_not_watched(device: Device) -> None:
    statistics = Statistics()
    held: list[torch.Tensor] = []

    def work(watched: bool) -> None:
        for _ in range(50):
            if watched:
                with watch(device, statistics):
                    held.append(torch.empty(100, dtype=torch.uint8, device=device.torch_device))
            else:
                torch.empty(100, dtype=torch.uint8, device=device.torch_device)

    threads = [threading.Thread(target=work, args=(watched,)) for watched in (True, True, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statistics.overall.count.current == 150
    held.clear()
    settle()
    assert statistics.overall.bytes == type(statistics.overall.bytes)(0, 15000, 15000)


def test_scopes_nest_and_stand_still_afterwards(device: Device) -> None:
    statistics = Statistics()
    with watch(device, statistics):
        with statistics.scope("outer") as outer:
            old = torch.empty(1000, dtype=torch.uint8, device=device.torch_device)
            with statistics.scope("inner") as inner:
                torch.empty(500, dtype=torch.uint8, device=device.torch_device)
                del old
        torch.empty(10, device=device.torch_device)
    assert (outer.bytes.current, outer.bytes.peak, outer.bytes.total) == (0, 1500, 1500)
    assert (inner.bytes.current, inner.bytes.peak, inner.bytes.total) == (-1000, 500, 500)
    assert (outer.count.peak, inner.count.total) == (2, 1)
