"""Each hook on a device in use: what it does to the device, and what it leaves alone."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import pytest
import torch

from devicekit.contract import DeviceGraph, Event, MemoryPool, ProcessMemory, Stream
from devicekit.contract.records import DeviceProperties
from tests.plugins.support import Bench, Make, serving

MIB = 1024**2


def test_the_current_device_is_read_and_changed(bench: Bench) -> None:
    bench.backend.set_index(1)
    assert bench.driver.current == 1
    assert bench.backend.current_index() == 1


PROPERTIES = {
    "cuda": ("NVIDIA H100 80GB HBM3", "9.0", 132, "1f7c3a52-0c5b-4b0e-9a0e-2b8f6f1f0a11"),
    "rocm": ("AMD Instinct MI300X", "gfx942", 304, "1f7c3a52-0c5b-4b0e-9a0e-2b8f6f1f0a11"),
    "xpu": ("Intel(R) Data Center GPU Max 1550", "0x2f0", 512, "00010203-0405-0607-0809-0a0b0c0d0e0f"),
    "npu": ("Ascend910B3", None, 20, "2f0a5f0e-1111-4222-8333-944455556666"),
    "musa": ("MTT S5000", "3.1", 56, None),
}


def test_properties_say_what_the_vendor_knows(bench: Bench) -> None:
    name, architecture, units, uuid = PROPERTIES[bench.name]
    found = bench.backend.device_properties(1)
    told = "1.6.33578" if bench.name == "xpu" else None  # others' modules do not know
    capability = {"cuda": (9, 0), "musa": (3, 1)}.get(bench.name)
    physical = 2 if bench.name in ("cuda", "rocm") else None  # the double hides one device before these
    assert found == DeviceProperties(
        name,
        1024 * MIB,
        uuid,
        architecture,
        units,
        unified_memory=False,
        driver=told,
        capability=(9, 0) if bench.name == "rocm" else capability,
        physical_index=physical,
    )


def test_synchronize_waits_for_every_stream_of_its_device_only(bench: Bench) -> None:
    backend, driver = bench.backend, bench.driver
    with backend.use_stream(backend.create_stream(0, 0)):
        driver.submit(5.0)
    driver.submit(3.0)
    with driver.on(1):
        driver.submit(100.0)
    backend.synchronize(0)
    assert driver.now == 5.0


def test_streams_and_events_order_work(bench: Bench) -> None:
    backend, driver = bench.backend, bench.driver
    side = backend.create_stream(0, 0)
    begin, end = backend.create_event(0, True), backend.create_event(0, True)
    assert isinstance(side, Stream)
    assert isinstance(end, Event)
    begin.record()
    with backend.use_stream(side):
        driver.submit(5.0)
        end.record()
    assert not side.query()
    assert not end.query()
    backend.current_stream(0).wait_event(end)
    driver.submit(1.0)
    backend.current_stream(0).synchronize()
    assert driver.now == 6.0
    assert begin.elapsed_time(end) == 5.0


def test_the_previous_stream_returns_after_an_error(bench: Bench) -> None:
    before = bench.driver.current_queues[0] if bench.backend.current_stream(0) else None
    with pytest.raises(KeyError), bench.backend.use_stream(bench.backend.create_stream(0, 0)):
        raise KeyError
    assert bench.driver.current_queues[0] is before


@pytest.mark.parametrize("priority", [-100, -1, 0, 100])
def test_priorities_out_of_range_are_clamped(priority: int, bench: Bench) -> None:
    bench.backend.create_stream(1, priority)
    made = bench.driver.queues[-1]
    assert made.index == 1
    assert (made.priority < 0) is (priority < 0)


@serving("create_graph")
def test_a_graph_is_captured_on_its_own_device_and_replayed(bench: Bench) -> None:
    backend, driver = bench.backend, bench.driver
    first, second = backend.create_graph(0), backend.create_graph(1)
    assert isinstance(second, DeviceGraph)
    for index, graph in enumerate((first, second)):
        with graph.capture():
            assert backend.is_capturing(index)
            assert driver.current == index
        assert not backend.is_capturing(index)
        assert driver.current == 0
    second.replay()
    second.reset()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        second.replay()


@serving("create_graph")
def test_other_threads_allocate_while_a_graph_is_captured(bench: Bench) -> None:
    """As one that takes in new weights; the vendor's default mode refuses it where there are modes."""
    if bench.name == "xpu":
        pytest.skip("its module knows no modes")
    with bench.backend.create_graph(0).capture(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(bench.driver.allocate, 0, MIB).result() is not None


def test_emptying_the_cache_reaches_every_device_and_no_live_tensor(bench: Bench) -> None:
    driver = bench.driver
    for index in (0, 1):
        driver.cards[index].give_back(driver.allocate(index, 3 * MIB) or 0)
    kept = driver.allocate(0, 1000)
    bench.backend.empty_cache()
    bench.backend.empty_cache()
    assert [card.reserved for card in driver.cards] == [2 * MIB, 0]
    assert kept in driver.cards[0].live


@serving("is_capturing")
def test_a_capture_is_seen_from_another_current_device(bench: Bench) -> None:
    backend, driver = bench.backend, bench.driver
    with backend.create_graph(1).capture(), driver.on(0):
        assert backend.is_capturing(1) is True
        assert backend.is_capturing(0) is False
        assert driver.current == 0


@serving("empty_host_cache")
def test_the_host_cache_keeps_what_callers_hold(bench: Bench) -> None:
    bench.driver.initialised = True
    bench.driver.pinned.update({"allocated_bytes.current": 8192, "active_bytes.current": 4096})
    if bench.backend.host_memory_stats is not None:
        stats = bench.backend.host_memory_stats()
        assert (stats.allocated, stats.reserved) == (4096, 8192)
    bench.backend.empty_host_cache()
    assert bench.driver.pinned["allocated_bytes.current"] == 4096


@serving("collect_ipc")
def test_ipc_memory_is_collected(bench: Bench) -> None:
    bench.driver.initialised, bench.driver.ipc_waiting = True, 3
    bench.backend.collect_ipc()
    assert bench.driver.ipc_waiting == 0


def test_peaks_fall_to_the_current_values(bench: Bench) -> None:
    handle = bench.driver.allocate(0, 5 * MIB)
    bench.driver.cards[0].give_back(handle or 0)
    assert (bench.backend.memory_stats(0).peak_allocated or 0) >= 5 * MIB
    bench.backend.reset_peak_memory_stats(0)
    stats = bench.backend.memory_stats(0)
    assert (stats.peak_allocated, stats.peak_reserved) == (stats.allocated, stats.reserved)


def test_the_driver_answers_for_all_processes(bench: Bench) -> None:
    bench.driver.allocate(0, 1000)
    info = bench.backend.memory_info(0)
    assert (info.free, info.total, info.source) == ((1024 - 64 - 2) * MIB, 1024 * MIB, "runtime")


@serving("memory_snapshot")
def test_a_snapshot_is_of_one_device(bench: Bench) -> None:
    bench.driver.allocate(0, 1000)
    bench.driver.allocate(1, 3 * MIB)
    assert [one["total_size"] for one in bench.backend.memory_snapshot(1)] == [4 * MIB]


@pytest.mark.parametrize("fraction", [0.5, 1])
@serving("set_memory_fraction")
def test_the_memory_fraction_limits_one_device(fraction: float, bench: Bench) -> None:
    bench.backend.set_memory_fraction(1, fraction)
    assert [card.fraction for card in bench.driver.cards] == [1.0, float(fraction)]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), float("inf")])
@serving("set_memory_fraction")
def test_a_fraction_that_is_none_is_refused_before_the_vendor_sees_it(wrong: float, bench: Bench) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        bench.backend.set_memory_fraction(1, wrong)
    assert not bench.driver.initialised


@serving("register_host_memory")
def test_what_is_registered_is_unregistered_by_its_address_and_size(bench: Bench) -> None:
    whole = torch.arange(4096)
    bench.backend.register_host_memory(whole[:1024])
    for other in (whole[:1], whole[:1023], whole, whole[100:101], whole[2048:], torch.arange(1024)):
        with pytest.raises((ValueError, RuntimeError)):
            bench.backend.unregister_host_memory(other)
    for again in (whole[:1024], whole[1000:], whole[:0], whole[::2]):
        with pytest.raises((ValueError, RuntimeError)):
            bench.backend.register_host_memory(again)
    bench.backend.register_host_memory(whole[1024:])
    bench.backend.unregister_host_memory(whole[:1024].view(32, 32))
    bench.backend.register_host_memory(whole[:8])
    bench.backend.unregister_host_memory(whole[:8])
    assert list(bench.driver.registered) == [whole[1024:].data_ptr()]


@serving("memory_pool")
def test_a_pool_is_used_only_inside_its_context(bench: Bench) -> None:
    pool = bench.backend.memory_pool(1)
    assert isinstance(pool, MemoryPool)
    with pool.use():
        assert bench.driver.pool_in_use is not None
    assert bench.driver.pool_in_use is None


@serving("record_memory_history")
def test_to_stop_a_recording_before_the_first_use_is_no_use(bench: Bench) -> None:
    bench.backend.record_memory_history(0, False)
    assert not bench.driver.initialised
    bench.driver.initialised = bench.driver.forked = True
    bench.backend.record_memory_history(0, False)  # nor does it fail in a child that cannot use the device


@serving("record_memory_history")
def test_recording_history_is_switched_on_and_off(bench: Bench) -> None:
    bench.backend.record_memory_history(0, True)
    assert bench.driver.history == "all"
    bench.backend.record_memory_history(0, False)
    assert bench.driver.history is None


def test_seeding_reaches_the_named_device_even_before_initialisation(bench: Bench) -> None:
    bench.backend.manual_seed(1, 42)
    assert bench.driver.seeds == {1: 42}
    state = bench.backend.get_rng_state(1)
    bench.backend.manual_seed(1, 43)
    bench.backend.set_rng_state(1, torch.stack([torch.zeros_like(state), state], dim=1)[:, 1])
    assert bench.driver.seeds == {1: 42}
    assert bench.driver.current == 0
    assert state.dtype is torch.uint8


def test_pinning_is_torchs_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    assert bench.backend.pin_memory(torch.tensor(1)).item() == 2


@serving("export_ipc")
def test_tensors_are_shared_by_torchs_reductions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bench.backend
    device_type = backend.vendor.device_type
    monkeypatch.setattr(
        "torch.multiprocessing.reductions.reduce_tensor", lambda tensor: (torch.add, (tensor.value, 1))
    )
    tensor = SimpleNamespace(device=SimpleNamespace(type=device_type), value=torch.tensor(1))
    assert backend.import_ipc(backend.export_ipc(tensor)).item() == 2
    with pytest.raises(ValueError, match="cannot be shared"):
        backend.export_ipc(torch.tensor(1))
    with pytest.raises(ValueError, match="not a handle"):
        backend.import_ipc((torch.add, ()))


def test_the_profiler_knows_the_device(bench: Bench) -> None:
    expected = {"cuda": "CUDA", "rocm": "CUDA", "xpu": "XPU", "npu": "PrivateUse1", "musa": "PrivateUse1"}
    assert bench.backend.profiler_activity() is getattr(torch.profiler.ProfilerActivity, expected[bench.name])


def test_overlapping_copies_are_claimed_only_where_established(bench: Bench) -> None:
    assert (bench.backend.copies_overlap is None) if bench.name == "xpu" else bench.backend.copies_overlap(0)


class _ManagementError(Exception):
    pass


def _fail() -> None:
    raise _ManagementError("no driver")


def test_nvml_names_the_processes_and_their_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = ModuleType("pynvml")
    running = [SimpleNamespace(pid=7, usedGpuMemory=5 * MIB), SimpleNamespace(pid=8, usedGpuMemory=None)]
    nvml.__dict__.update(
        NVMLError=_ManagementError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: running if handle == 2 else [],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    backend = make("cuda").backend
    assert backend.process_memory(1) == [ProcessMemory(7, 5 * MIB), ProcessMemory(8, None)]
    assert backend.process_memory(0) == []
    monkeypatch.setattr(nvml, "nvmlInit", _fail)
    assert backend.process_memory(1) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert backend.process_memory(1) is None


@pytest.mark.parametrize("told", ["570.86.15", b"570.86.15"])
def test_nvml_names_the_driver(told: str | bytes, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = ModuleType("pynvml")
    nvml.__dict__.update(
        NVMLError=_ManagementError, nvmlInit=lambda: None, nvmlSystemGetDriverVersion=lambda: told
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert make("cuda").backend.device_properties(0).driver == "570.86.15"
    monkeypatch.setattr(nvml, "nvmlSystemGetDriverVersion", _fail)
    assert make("cuda").backend.device_properties(0).driver is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert make("cuda").backend.device_properties(0).driver is None


@pytest.mark.parametrize(("told", "driver"), [("6.14.14", "6.14.14"), ("N/A", None), ("", None)])
def test_amdsmi_names_the_driver(
    told: str, driver: str | None, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    amdsmi = ModuleType("amdsmi")
    amdsmi.__dict__.update(
        AmdSmiException=_ManagementError,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: ["a", "bb", "ccc"],
        amdsmi_get_gpu_driver_info=lambda handle: {"driver_name": "amdgpu", "driver_version": told},
    )
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi)
    assert make("rocm").backend.device_properties(1).driver == driver
    monkeypatch.setattr(amdsmi, "amdsmi_init", _fail)
    assert make("rocm").backend.device_properties(1).driver is None


def test_amdsmi_names_the_processes_and_their_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    amdsmi = ModuleType("amdsmi")
    amdsmi.__dict__.update(
        AmdSmiException=_ManagementError,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: ["a", "bb", "ccc"],
        amdsmi_get_gpu_process_list=lambda handle: [
            {"pid": 7, "memory_usage": {"vram_mem": len(handle) * MIB}}
        ],
    )
    monkeypatch.setitem(sys.modules, "amdsmi", amdsmi)
    backend = make("rocm").backend
    assert backend.process_memory(1) == [ProcessMemory(7, 3 * MIB)]
    monkeypatch.setattr(amdsmi, "amdsmi_init", _fail)
    assert backend.process_memory(1) is None
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert backend.process_memory(1) is None
