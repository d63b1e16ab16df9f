"""``torch.sim`` keeps the promises that vendors' modules make, from laziness to the meaning of each number."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from devicekit.testing import MIB, SimConfig, Simulator, simulation

pytestmark = pytest.mark.usefixtures("machine")
VARIANTS = [
    SimConfig(),
    SimConfig.rounding_to_2mib(),
    SimConfig.uncached(),
    SimConfig.synchronous(),
    SimConfig.slow_driver(),
    SimConfig.unified(),
]
variants = pytest.mark.parametrize(
    "machine", VARIANTS, indirect=True, ids=["default", "2mib", "uncached", "synchronous", "slow", "unified"]
)


def get(key: str, device: int = 0) -> int:
    return torch.sim.memory_stats(device)[f"{key}.all.current"]


@pytest.mark.parametrize(
    "look",
    [
        lambda: torch.sim.is_available(),
        lambda: torch.sim.device_count(),
        lambda: torch.sim.current_device(),
        lambda: torch.sim.get_device_properties(),
        lambda: torch.sim.memory_stats(),
        lambda: torch.sim.memory_allocated(),
        lambda: torch.sim.host_memory_stats(),
        lambda: torch.sim.empty_cache(),
        lambda: torch.sim.memory_snapshot(),
        lambda: torch.sim.manual_seed(1),
        lambda: torch.sim.is_current_stream_capturing(),
        lambda: torch.accelerator.empty_cache(),
        lambda: torch.accelerator.memory_stats(),
    ],
)
def test_looking_does_not_initialise(look: Callable[[], object]) -> None:
    look()
    assert not torch.sim.is_initialized()


@pytest.mark.parametrize(
    "use",
    [
        lambda: torch.ones(1, device="sim"),
        lambda: torch.sim.synchronize(),
        lambda: torch.sim.mem_get_info(),
        lambda: torch.sim.Stream(),
        lambda: torch.sim.current_stream(),
        lambda: torch.sim.init(),
    ],
)
def test_use_initialises(use: Callable[[], object]) -> None:
    use()
    assert torch.sim.is_initialized()


def test_statistics_are_empty_rather_than_zero_before_first_use() -> None:
    assert torch.sim.memory_stats() == {}
    assert torch.sim.host_memory_stats() == {}


@variants
def test_the_numbers_of_an_allocation_and_its_end(machine: Simulator) -> None:
    torch.sim.init()
    free, total = torch.sim.mem_get_info()
    x = torch.empty(3 * MIB, dtype=torch.uint8, device="sim")
    assert (
        get("requested_bytes")
        == 3 * MIB
        <= get("allocated_bytes")
        <= get("active_bytes")
        <= get("reserved_bytes")
    )
    assert torch.sim.mem_get_info() == (free - get("reserved_bytes"), total)
    assert get("reserved_bytes") <= total
    del x
    assert get("allocated_bytes") == 0
    torch.sim.empty_cache()
    assert get("reserved_bytes") == 0
    assert torch.sim.mem_get_info() == (free, total)


@variants
def test_free_stays_within_a_total_that_never_changes(machine: Simulator) -> None:
    total = torch.sim.mem_get_info()[1]
    assert total == machine.config.capacity == torch.sim.get_device_properties().total_memory
    held: list[torch.Tensor] = []
    while True:
        free, now = torch.sim.mem_get_info()
        assert 0 <= free <= now == total
        assert get("reserved_bytes") <= total
        try:
            held.append(torch.empty(37 * MIB, dtype=torch.uint8, device="sim"))
        except torch.OutOfMemoryError:
            break
    assert len(held) == total // (38 * MIB if machine.config.caching else 37 * MIB)


@variants
def test_emptying_changes_no_live_byte_and_lowers_reserved_everywhere(machine: Simulator) -> None:
    live = torch.arange(1000, device="sim")
    for index in (0, 1):
        torch.empty(30 * MIB, dtype=torch.uint8, device=f"sim:{index}")
    allocated = get("allocated_bytes")
    torch.sim.empty_cache()
    torch.sim.empty_cache()
    assert get("allocated_bytes") == allocated
    assert get("reserved_bytes", 1) == 0
    assert get("reserved_bytes") < 30 * MIB
    assert live.tolist() == list(range(1000))


@variants
def test_peaks_hold_until_they_are_reset(machine: Simulator) -> None:
    x = torch.empty(5 * MIB, dtype=torch.uint8, device="sim")
    peak = torch.sim.max_memory_allocated()
    del x
    assert torch.sim.max_memory_allocated() == peak >= 5 * MIB
    torch.sim.reset_peak_memory_stats()
    assert torch.sim.max_memory_allocated() == torch.sim.memory_allocated() == 0
    assert torch.sim.max_memory_reserved() == torch.sim.memory_reserved()


@variants
def test_devices_are_counted_apart(machine: Simulator) -> None:
    torch.sim.init()
    before = get("allocated_bytes", 0)
    held = torch.empty(MIB, device="sim:1")
    assert get("allocated_bytes", 0) == before
    assert get("allocated_bytes", 1) == held.nbytes


@variants
def test_a_request_above_the_fraction_is_out_of_memory(machine: Simulator) -> None:
    torch.sim.set_per_process_memory_fraction(0.25)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(machine.config.capacity // 3, dtype=torch.uint8, device="sim")
    assert torch.sim.memory_stats()["num_ooms"] == 1
    torch.empty(MIB, dtype=torch.uint8, device="sim")
    torch.sim.set_per_process_memory_fraction(1.0)
    torch.empty(machine.config.capacity // 3, dtype=torch.uint8, device="sim")


@pytest.mark.parametrize(("fraction", "error"), [(1, TypeError), (1.5, ValueError), (-0.1, ValueError)])
def test_a_fraction_is_a_float_from_zero_to_one(fraction: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="fraction"):
        torch.sim.set_per_process_memory_fraction(fraction)


def test_another_process_takes_what_the_driver_calls_free(machine: Simulator) -> None:
    free, total = torch.sim.mem_get_info(1)
    with machine.other_process(total - MIB, 1) as other:
        assert torch.sim.mem_get_info(1) == (free - other.nbytes, total)
        assert get("reserved_bytes", 1) == 0
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(8, device="sim:1")
        with pytest.raises(ValueError, match="free"):
            machine.other_process(2 * MIB, 1)
    torch.empty(8, device="sim:1")


@pytest.mark.parametrize("machine", [SimConfig.slow_driver()], indirect=True)
def test_a_slow_driver_costs_time_only_when_it_is_asked(machine: Simulator) -> None:
    config, clock = machine.config, machine.clock
    x = torch.empty(8, device="sim")
    assert clock.now() == config.driver_alloc_seconds
    del x
    x = torch.empty(8, device="sim")
    assert clock.now() == config.driver_alloc_seconds
    del x
    torch.sim.empty_cache()
    assert clock.now() == config.driver_alloc_seconds + config.driver_free_seconds


def test_emptying_waits_for_the_device(machine: Simulator) -> None:
    torch.sim.busy(2.0)
    torch.sim.empty_cache()
    assert machine.clock.now() == 2.0


def test_each_thread_has_a_current_device_of_its_own() -> None:
    torch.sim.set_device(1)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.sim.current_device()))
    thread.start()
    thread.join()
    assert (torch.sim.current_device(), seen) == (1, [0])


def test_the_device_block_restores_after_an_error_and_ignores_none() -> None:
    def fail_inside() -> None:
        with torch.sim.device("sim:1"):
            assert torch.sim.current_device() == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    with torch.sim.device(None):
        assert torch.sim.current_device() == 0


def test_a_device_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="cpu"):
        torch.sim.synchronize("cpu")


def test_torch_accelerator_speaks_of_this_machine(machine: Simulator) -> None:
    assert torch.accelerator.current_accelerator() == torch.device("sim")
    assert torch.get_device_module() is torch.sim
    x = torch.empty(8, device="sim:1")
    torch.accelerator.set_device_index(1)
    assert torch.accelerator.current_device_index() == torch.sim.current_device() == 1
    assert torch.accelerator.memory_allocated() == torch.sim.memory_allocated(1) == 512
    assert torch.accelerator.get_memory_info() == torch.sim.mem_get_info(1)
    with torch.accelerator.device_index(0):
        assert torch.sim.current_device() == 0
    torch.sim.busy(1.0)
    torch.accelerator.synchronize()
    assert machine.clock.now() == 1.0
    del x
    torch.accelerator.empty_cache()
    if hasattr(torch.accelerator, "empty_host_cache"):  # since torch 2.12
        torch.accelerator.empty_host_cache()
    torch.accelerator.reset_peak_memory_stats()
    torch.accelerator.reset_accumulated_memory_stats()
    assert torch.sim.memory_reserved(1) == torch.sim.max_memory_allocated(1) == 0


def test_a_private_pool_serves_its_block_only_in_its_thread_and_while_it_lasts() -> None:
    pool = torch.sim.create_pool()
    with torch.sim.use_mem_pool(pool):
        inside = torch.empty(8, device="sim")
    outside = torch.empty(8, device="sim")
    assert torch.sim.memory_stats()["segment.all.current"] == 2
    del inside, outside
    torch.sim.empty_cache()
    assert torch.sim.memory_stats()["segment.all.current"] == 1
    torch.sim.release_pool(pool)
    torch.sim.empty_cache()
    assert torch.sim.memory_stats()["segment.all.current"] == 0


def test_a_simulation_ends_with_its_block_and_leaves_the_one_before(machine: Simulator) -> None:
    held = torch.empty(8, device="sim")
    with simulation(SimConfig(device_count=3)) as inner:
        assert torch.sim.device_count() == 3
        assert torch.sim.memory_stats() == {}
        assert inner.clock is not machine.clock
    assert torch.sim.device_count() == 2
    assert get("requested_bytes") == held.nbytes
