"""Scripted faults strike where they say, when they say, and are on record."""

from __future__ import annotations

import threading

import pytest
import torch

from devicekit.testing import (
    DeviceLost,
    Fault,
    FaultScript,
    Hang,
    HangEnded,
    LoseDevice,
    MockClock,
    OutOfMemory,
    Raise,
    Simulator,
    Slow,
)


def test_only_the_chosen_uses_are_affected_and_each_is_on_record() -> None:
    script = FaultScript((Fault("copy", Raise(OSError), nth=2, times=2),), MockClock())
    outcomes: list[str] = []
    for _ in range(5):
        try:
            script.visit("copy")
            outcomes.append("ok")
        except OSError:
            outcomes.append("failed")
    assert outcomes == ["ok", "failed", "failed", "ok", "ok"]
    assert [hit.occurrence for hit in script.hits] == [2, 3]
    assert script.seen == {"copy": 5}


def test_other_operations_and_other_devices_are_neither_counted_nor_affected() -> None:
    script = FaultScript((Fault("copy", Raise(OSError), index=1),), MockClock())
    script.visit("kernel", 1)
    script.visit("copy", 0)
    assert script.untouched() == script.faults
    with pytest.raises(OSError):
        script.visit("copy", 1)
    assert script.untouched() == ()


def test_a_star_is_any_operation_and_no_times_is_for_ever() -> None:
    script = FaultScript((Fault("*", Raise(OSError), nth=2, times=None),), MockClock())
    script.visit("a")
    for operation in ("b", "c"):
        with pytest.raises(OSError):
            script.visit(operation)


def test_a_lost_device_stays_lost_and_the_others_do_not() -> None:
    script = FaultScript((Fault("kernel", LoseDevice(), index=1),), MockClock())
    with pytest.raises(DeviceLost) as lost:
        script.visit("kernel", 1)
    assert lost.value.index == 1
    with pytest.raises(DeviceLost):
        script.visit("synchronize", 1)
    assert not script.visit("synchronize", 0)


def test_a_slow_operation_takes_time_on_the_clock() -> None:
    clock = MockClock()
    script = FaultScript((Fault("copy", Slow(30.0)),), clock)
    assert not script.visit("copy")
    assert clock.now() == 30.0
    assert script.hits[0].time == 0.0


def test_a_hang_blocks_its_thread_until_it_is_released() -> None:
    script = FaultScript((Fault("synchronize", Hang(bound=30.0)),), MockClock())
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (script.visit("synchronize"), ended.set()))
    thread.start()
    assert not ended.wait(0.02)
    script.release()
    thread.join(timeout=5)
    assert ended.is_set()


def test_a_hang_that_nobody_ends_raises_at_its_bound() -> None:
    script = FaultScript((Fault("synchronize", Hang(bound=0.01)),), MockClock())
    with pytest.raises(HangEnded, match=r"0\.01"):
        script.visit("synchronize")


@pytest.mark.parametrize(("nth", "times"), [(0, 1), (1, 0)])
def test_counting_starts_at_one(nth: int, times: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        Fault("copy", OutOfMemory(), nth=nth, times=times)


def test_the_nth_allocation_fails_as_out_of_memory_and_the_next_one_works(machine: Simulator) -> None:
    with machine.inject(Fault("allocate", OutOfMemory(), nth=3)) as script:
        held = [torch.empty(10, device="sim") for _ in range(2)]
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(10, device="sim")
        held.append(torch.empty(10, device="sim"))
    assert script.seen["allocate"] == 4
    assert torch.sim.memory_stats()["num_ooms"] == 1


def test_a_driver_that_refuses_once_is_asked_again_after_the_cache_was_emptied(machine: Simulator) -> None:
    with machine.inject(Fault("driver_allocate", OutOfMemory())):
        held = torch.empty(10, device="sim")
    assert held.numel() == 10
    assert torch.sim.memory_stats()["num_alloc_retries"] == 1
    assert torch.sim.memory_stats()["num_ooms"] == 0


def test_one_kind_of_kernel_can_fail(machine: Simulator) -> None:
    x = torch.eye(2, device="sim")
    with machine.inject(Fault("kernel:aten::mm", Raise(lambda: RuntimeError("bad kernel")))):
        x + x
        with pytest.raises(RuntimeError, match="bad kernel"):
            x @ x
    assert torch.equal((x @ x).cpu(), torch.eye(2))


def test_a_named_function_of_the_module_can_fail(machine: Simulator) -> None:
    with machine.inject(Fault("memory_stats", Raise(lambda: RuntimeError("driver bug")))):
        with pytest.raises(RuntimeError, match="driver bug"):
            torch.sim.memory_stats()
        torch.sim.memory_stats()


def test_any_operation_can_fail_as_out_of_memory(machine: Simulator) -> None:
    x = torch.ones(2, device="sim")
    for operation, use in (
        ("copy", x.cpu),
        ("synchronize", torch.sim.synchronize),
        ("kernel", lambda: x + x),
    ):
        with machine.inject(Fault(operation, OutOfMemory())), pytest.raises(torch.OutOfMemoryError):
            use()


def test_a_lost_device_fails_allocations_kernels_and_waits(machine: Simulator) -> None:
    x = torch.ones(2, device="sim")
    with machine.inject(Fault("kernel", LoseDevice())):
        for use in (lambda: x + x, lambda: torch.empty(1, device="sim"), torch.sim.synchronize, x.cpu):
            with pytest.raises(DeviceLost):
                use()
        assert torch.ones(2, device="sim:1").tolist() == [1.0, 1.0]


def test_hangs_end_with_their_block(machine: Simulator) -> None:
    thread = threading.Thread(target=torch.sim.synchronize)
    with machine.inject(Fault("synchronize", Hang(bound=30.0))) as script:
        thread.start()
        while not script.hits:
            thread.join(timeout=0.01)
        assert thread.is_alive()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_faults_end_with_their_block(machine: Simulator) -> None:
    with machine.inject(Fault("allocate", OutOfMemory(), times=None)), pytest.raises(torch.OutOfMemoryError):
        torch.empty(1, device="sim")
    torch.empty(1, device="sim")
