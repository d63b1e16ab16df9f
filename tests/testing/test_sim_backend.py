"""The simulated accelerator is a sound backend: every hook is there, and does what the contract says."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import devicekit
from devicekit.contract.errors import HookError, InvalidDevice
from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream
from devicekit.contract.hooks import HOOKS
from devicekit.contract.records import AllocatorState, ErrorKind
from devicekit.device import Device
from devicekit.registry import unregister_backend
from devicekit.testing import MIB, DeviceLost, ForkedAfterUse, SimConfig, Simulator, WrongDevice, simulation
from devicekit.testing.sim_backend import SimBackend, manifest, register


@pytest.fixture
def device(machine: Simulator) -> Iterator[Device]:
    register()
    yield devicekit.get_device("sim:1")
    unregister_backend("sim")


def test_registering_twice_is_harmless(machine: Simulator) -> None:
    try:
        assert register() == register()
    finally:
        unregister_backend("sim")


def test_every_hook_of_the_contract_is_there(device: Device) -> None:
    assert [hook for hook in HOOKS if not device.supports(hook)] == ["export_event", "import_event"]


def test_a_device_is_one_index_of_it(device: Device) -> None:
    assert device.torch_device == torch.device("sim", 1)
    with device.current():
        assert torch.zeros(1, device="sim").device.index == 1
    with pytest.raises(InvalidDevice):
        devicekit.get_device("sim:2")


def test_statistics_are_unknown_before_first_use_and_reading_them_is_no_use(device: Device) -> None:
    stats = device.memory_stats()
    assert stats.state is AllocatorState.UNINITIALISED
    assert stats.allocated is None
    assert not torch.sim.is_initialized()
    assert device.host_memory_stats().reserved is None


@pytest.mark.parametrize("index", [-1, 2, 10_000])
def test_an_index_that_does_not_exist_is_taken_for_no_other(machine: Simulator, index: int) -> None:
    machine.initialize()
    same_on_all = {"copies_overlap", "supported_dtypes", "priority_range", "submit_work"}
    fitting: dict[str, object] = {
        "fraction": 0.5,
        "enabled": False,
        "state": torch.get_rng_state(),
        "pool": None,
    }
    for name, spec in HOOKS.items():
        if spec.parameters[:1] != ("index",) or name in same_on_all or not hasattr(SimBackend, name):
            continue
        with pytest.raises(WrongDevice):
            getattr(SimBackend(), name)(index, *(fitting.get(one, 0) for one in spec.parameters[1:]))


def test_statistics_name_every_quantity(device: Device) -> None:
    held = torch.empty(3 * MIB + 1, dtype=torch.uint8, device=device.torch_device)
    stats = device.memory_stats()
    assert (stats.state, stats.requested, stats.allocated) == (AllocatorState.OK, held.nbytes, 3 * MIB + 512)
    assert (stats.active, stats.reserved, stats.num_segments) == (3 * MIB + 512, 20 * MIB, 1)
    assert (stats.inactive_split, stats.releasable) == (17 * MIB - 512, 0)
    assert None not in (stats.peak_allocated, stats.peak_active, stats.peak_reserved, stats.num_ooms)
    assert stats.raw["segment.large_pool.current"] == 1


def test_resetting_peaks_before_first_use_is_no_use(device: Device) -> None:
    assert device.reset_peak_memory_stats()
    assert not torch.sim.is_initialized()
    torch.empty(MIB, device=device.torch_device)
    device.reset_peak_memory_stats()
    assert device.memory_stats().peak_allocated == 0


def test_emptying_gives_back_what_it_says(device: Device) -> None:
    torch.empty(30 * MIB, dtype=torch.uint8, device=device.torch_device)
    free = device.memory_info().free
    released = device.empty_cache()
    assert released
    assert released.released == 30 * MIB
    assert free is not None
    assert device.memory_info().free == free + 30 * MIB


def test_memory_is_told_by_process(machine: Simulator, device: Device) -> None:
    torch.empty(8, device=device.torch_device)
    with machine.other_process(5 * MIB, 1) as other:
        held = {entry.pid: entry.used for entry in device.process_memory() or ()}
    assert held == {os.getpid(): 2 * MIB, other.pid: 5 * MIB}


@pytest.mark.parametrize("machine", [SimConfig.unified()], indirect=True)
def test_a_process_with_several_holdings_is_told_once_with_their_sum(
    machine: Simulator, device: Device
) -> None:
    held = [torch.empty(8, device="sim:0"), torch.empty(8, device="sim:1"), device.pin_memory(torch.ones(2))]
    (entry,) = device.process_memory() or ()
    assert entry.used == 2 * 2 * MIB + held[2].nbytes


def test_properties_say_what_the_machine_is(device: Device) -> None:
    properties = device.properties()
    assert properties.total_memory == device.memory_info().total == 256 * MIB
    assert properties.unified_memory is False
    assert properties.uuid != devicekit.get_device("sim:0").properties().uuid


def test_streams_events_graphs_and_pools_are_the_contracts(device: Device) -> None:
    stream = device.create_stream(priority=-100)
    event = device.create_event(timing=True)
    assert isinstance(stream, Stream)
    assert isinstance(event, Event)
    assert isinstance(device.create_graph(), DeviceGraph)
    assert isinstance(device.memory_pool(), MemoryPool)
    with device.use_stream(stream):
        assert device.current_stream() is stream
        torch.ones(2, device=device.torch_device)
        event.record()
    assert not event.query()
    device.synchronize()
    assert event.query()


def test_a_pool_keeps_its_allocations_apart(device: Device) -> None:
    pool = device.memory_pool()
    with pool.use():
        inside = torch.empty(8, device=device.torch_device)
    outside = torch.empty(8, device=device.torch_device)
    assert abs(inside.data_ptr() - outside.data_ptr()) >= 2 * MIB


def test_capturing_is_known_and_only_then(device: Device) -> None:
    graph = device.create_graph()
    assert device.is_capturing() is False
    with graph.capture():
        assert device.is_capturing() is True
    assert device.is_capturing() is False


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("full"), ErrorKind.OUT_OF_MEMORY),
        (DeviceLost(1), ErrorKind.DEVICE_LOST),
        (WrongDevice("mixed"), ErrorKind.WRONG_DEVICE),
        (ForkedAfterUse("child"), ErrorKind.NOT_INITIALISED),
        (ValueError("out of memory"), None),
    ],
)
def test_errors_are_told_apart_by_type(device: Device, error: Exception, kind: ErrorKind | None) -> None:
    assert device.classify_error(error) is kind
    outer = RuntimeError("while loading")
    outer.__cause__ = error
    assert device.classify_error(outer) is kind


def test_pinned_memory_and_overlap(device: Device) -> None:
    assert device.pin_memory(torch.ones(3)).is_pinned()
    assert device.copies_overlap() is True
    held = device.pin_memory(torch.zeros(1024, dtype=torch.uint8))
    device.pin_memory(torch.zeros(1024, dtype=torch.uint8))
    device.synchronize()
    host = device.host_memory_stats()
    assert host.allocated == held.nbytes
    assert host.reserved is not None
    assert host.reserved >= 2 * held.nbytes
    assert device.empty_host_cache().released == host.reserved - held.nbytes


def test_random_state_is_per_device_and_can_be_restored(device: Device) -> None:
    device.manual_seed(3)
    state = device.get_rng_state()
    first = torch.rand(4, device="sim:1")
    torch.rand(4, device="sim:0")
    device.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="sim:1"), first)
    for rows in (
        torch.stack([device.get_rng_state(), state]),
        torch.stack([device.get_rng_state(), state], dim=1).T,
    ):
        device.set_rng_state(rows[1])
        assert torch.equal(torch.rand(4, device="sim:1"), first)
    assert state.dtype == torch.uint8
    assert state.device.type == "cpu"


def test_memory_history_is_recorded_on_request(device: Device) -> None:
    def frames() -> list[list[str]]:
        snapshot = device.memory_snapshot() or ()
        return [block["frames"] for segment in snapshot for block in segment["blocks"]]  # type: ignore[attr-defined]

    held = [torch.empty(8, device=device.torch_device)]
    assert not any(frames())
    device.record_memory_history(True)
    held.append(torch.empty(8, device=device.torch_device))
    device.record_memory_history(False)
    assert sum(bool(frame) for frame in frames()) == 1


def test_to_stop_a_recording_that_was_not_started_is_no_use(device: Device) -> None:
    device.record_memory_history(False)
    assert not torch.sim.is_initialized()
    device.record_memory_history(True)
    assert torch.sim.is_initialized()


def test_a_setting_takes_digits_and_nothing_like_them(device: Device) -> None:
    """By generation: whatever is no plain number raises, and what was set before stays for every device."""
    before = device.allocator_settings()
    forms = (
        "-{}",
        "+{}",
        " {}",
        "{}\n",
        "{}.0",
        "{}e3",
        "0x{}",
        "{}_0",
        "{}MB",
        "{},{}",
        "\u0665{}",
        "{}" * 9,
    )
    for form in (*forms, "", "None", "9" * 5000):
        for setting in before or ():
            with pytest.raises(HookError) as refused:
                device.set_allocator_setting(setting.name, form.replace("{}", "1024"))
            assert isinstance(refused.value.__cause__, ValueError)
            assert device.allocator_settings() == before
    device.set_allocator_setting("small_limit", "0")
    assert ("small_limit", "0") in [(one.name, one.value) for one in device.allocator_settings() or ()]


def test_a_memory_fraction_limits_this_device_only(device: Device) -> None:
    device.set_memory_fraction(0.0)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(8, device="sim:1")
    torch.empty(8, device="sim:0")


def test_exported_memory_comes_back(device: Device) -> None:
    tensor = torch.ones(4, device=device.torch_device)
    device.import_ipc(device.export_ipc(tensor)).fill_(7.0)
    assert tensor.tolist() == [7.0] * 4


@pytest.mark.parametrize(
    ("machine", "gained", "lost"),
    [
        (SimConfig.uncached(), set(), {"caching_allocator"}),
        (SimConfig.synchronous(), set(), {"async_copies"}),
        (SimConfig.unified(), {"unified_memory"}, set()),
    ],
    indirect=["machine"],
)
def test_capabilities_are_those_of_the_machine(machine: Simulator, gained: set[str], lost: set[str]) -> None:
    claimed = manifest().capabilities
    with simulation():
        usual = manifest().capabilities
    assert claimed - usual == gained
    assert usual - claimed == lost
