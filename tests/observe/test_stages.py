"""The stage profiler times host and device, knows memory per stage, nests, and touches nothing."""

from __future__ import annotations

import threading

import pytest
import torch

from devicekit import Device
from devicekit.contract.errors import HookError
from devicekit.observe import NO_PROFILER, StageProfiler
from devicekit.testing import MIB, Fault, Raise, SimConfig, Simulator


def _work(device: Device, times: int = 1) -> torch.Tensor:
    found = torch.ones(MIB, dtype=torch.uint8, device=device.torch_device)
    for _ in range(times):
        found.add_(1)
    return found


def test_device_time_is_the_devices_own_and_waits_for_nobody(sim: Device, machine: Simulator) -> None:
    _work(sim)
    sim.synchronize()
    profiler = StageProfiler(sim)
    with profiler.stage("kernels") as stage:
        _work(sim, 9)
    assert stage.device_seconds is None  # under way
    sim.synchronize()
    assert stage.device_seconds == pytest.approx(10 * machine.config.kernel_seconds)


def test_synchronizing_makes_the_hosts_time_the_stages_own(sim: Device, machine: Simulator) -> None:
    _work(sim)
    profilers = {wait: StageProfiler(sim, synchronize=wait, now=machine.clock.now) for wait in (False, True)}
    for wait, profiler in profilers.items():
        with profiler.stage("kernels") as stage:
            _work(sim, 9)
        if not wait:
            assert stage.wall_seconds == 0
            sim.synchronize()
        else:
            assert stage.wall_seconds == pytest.approx(10 * machine.config.kernel_seconds)
            assert stage.device_seconds == pytest.approx(10 * machine.config.kernel_seconds)


def test_stages_nest_and_memory_is_told_for_each(sim: Device) -> None:
    profiler = StageProfiler(sim)
    with profiler.stage("request"):
        for _ in range(2):
            with profiler.stage("step"):
                held = _work(sim)
        del held
    summary = {one.path: one for one in profiler.summary()}
    assert list(summary) == [("request", "step"), ("request",)]
    assert summary["request", "step"].count == 2
    assert (summary["request",].allocated, summary["request",].peak) == (0, 2 * MIB)
    lines = profiler.report().splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "request", "step"]
    assert lines[2].startswith("  step")


def test_a_stage_before_first_use_initialises_nothing(sim: Device) -> None:
    profiler = StageProfiler(sim, synchronize=True)
    with profiler.stage("nothing yet") as stage:
        assert not torch.sim.is_initialized()
    assert not torch.sim.is_initialized()
    assert stage.device_seconds is None
    assert stage.memory is not None
    assert stage.memory.current == 0


def test_a_stage_while_capturing_neither_waits_nor_marks(sim: Device) -> None:
    held = _work(sim)
    graph = sim.create_graph()
    profiler = StageProfiler(sim, synchronize=True)
    with sim.current(), graph.capture(), profiler.stage("captured") as stage:
        held.add_(1)
    assert stage.device_seconds is None
    assert profiler.records == (stage,)


def test_on_a_backend_without_events_or_statistics_only_the_host_is_timed(cpu: Device) -> None:
    profiler = StageProfiler(cpu)
    with profiler.stage("host") as stage:
        torch.ones(8)
    assert stage.wall_seconds > 0
    assert stage.device_seconds is None
    assert stage.memory is not None
    assert stage.memory.current is None
    assert profiler.report().splitlines()[1].split()[-3:] == ["?", "?", "?"]


def test_a_failing_stage_is_recorded_and_its_error_untouched(sim: Device) -> None:
    _work(sim)
    profiler = StageProfiler(sim)
    with pytest.raises(KeyError, match="mine"), profiler.stage("outer"), profiler.stage("inner"):
        raise KeyError("mine")
    assert [(stage.path, stage.failed) for stage in profiler.records] == [
        (("outer", "inner"), True),
        (("outer",), True),
    ]
    with profiler.stage("next") as stage:
        pass
    assert stage.path == ("next",)


def test_a_device_that_cannot_be_asked_leaves_no_stage_open(sim: Device, machine: Simulator) -> None:
    profiler = StageProfiler(sim)
    with (
        machine.inject(Fault("memory_stats", Raise(lambda: ValueError("broken")))),
        pytest.raises(HookError, match="broken"),
    ):
        profiler.stage("first").__enter__()
    with profiler.stage("second") as stage:
        pass
    assert stage.path == ("second",)


def test_threads_have_nestings_of_their_own(cpu: Device) -> None:
    profiler = StageProfiler(cpu)

    def other() -> None:
        with profiler.stage("other"):
            pass

    with profiler.stage("main"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [stage.path for stage in profiler.records] == [("other",), ("main",)]


def test_old_records_give_way_and_are_counted(cpu: Device) -> None:
    profiler = StageProfiler(cpu, keep=2)
    for name in "abc":
        with profiler.stage(name):
            pass
    assert [stage.name for stage in profiler.records] == ["b", "c"]
    assert profiler.dropped == 1


def test_no_profiler_serves_the_same_code() -> None:
    ran = []
    with NO_PROFILER.stage("anything"), NO_PROFILER.stage("nested"):
        ran.append("work")
    with pytest.raises(KeyError), NO_PROFILER.stage("failing"):
        raise KeyError  # what the work raises comes through
    assert ran == ["work"]


@pytest.mark.parametrize("machine", [SimConfig.synchronous()], indirect=True)
def test_profiling_empties_and_resets_nothing(sim: Device) -> None:
    _work(sim)
    torch.empty(30 * MIB, dtype=torch.uint8, device=sim.torch_device)
    before = sim.memory_stats()
    profiler = StageProfiler(sim, synchronize=True)
    with profiler.stage("look"):
        profiler.report()
    profiler.report()
    assert sim.memory_stats() == before
