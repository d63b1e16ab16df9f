"""``torch.sim``: the simulated accelerator behind the functions that vendors' modules have.

Reading never initialises: before the first allocation, stream or wait, statistics are empty and emptying the cache
does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from devicekit.testing import active
from devicekit.testing.simulator import DeviceLike, Simulator
from devicekit.testing.streams import SimEvent, SimStream

__all__ = ["SimDeviceProperties", "SimModule"]


@dataclass(frozen=True, slots=True)
class SimDeviceProperties:
    """What the device says of itself. Memory in bytes."""

    name: str
    total_memory: int
    is_integrated: bool
    multi_processor_count: int
    uuid: str
    major: int = 1
    minor: int = 0
    driver_version: str | None = None


class _Device:
    """``with torch.sim.device(1):`` makes device 1 current; None changes nothing."""

    def __init__(self, device: DeviceLike) -> None:
        self._wanted = device
        self._before = 0

    def __enter__(self) -> None:
        machine = active.simulator()
        self._before = machine.index_of()
        machine.set_device(self._wanted)

    def __exit__(self, *exc: object) -> None:
        active.simulator().set_device(self._before)


class SimModule:
    """The module object that torch registers as ``torch.sim``."""

    __name__ = f"torch.{active.DEVICE_TYPE}"

    Stream = SimStream
    Event = SimEvent
    device = _Device
    OutOfMemoryError = torch.OutOfMemoryError

    # Presence and life.

    def is_available(self) -> bool:
        return self._visited("is_available").config.device_count > 0

    def device_count(self) -> int:
        return self._visited("device_count").config.device_count

    def is_initialized(self) -> bool:
        machine = active.simulator()
        return machine.initialized and not machine.in_bad_fork()

    def init(self) -> None:
        self._visited("init").initialize()

    _lazy_init = init

    def _is_in_bad_fork(self) -> bool:
        return active.simulator().in_bad_fork()

    # Selection.

    def current_device(self) -> int:
        machine = self._visited("current_device")
        if machine.config.asking_initialises:
            machine.initialize()
        return machine.index_of()

    def set_device(self, device: DeviceLike) -> None:
        self._visited("set_device").set_device(device)

    def get_device_properties(self, device: DeviceLike = None) -> SimDeviceProperties:
        machine = self._visited("get_device_properties", device)
        if machine.config.asking_initialises:
            machine.initialize()
        found = machine.device(device)
        return SimDeviceProperties(
            name=machine.config.name,
            total_memory=found.memory.total,
            is_integrated=machine.config.unified_memory,
            multi_processor_count=1,
            uuid=f"sim-{found.index:08d}",
            driver_version=machine.config.driver_version,
        )

    def get_device_name(self, device: DeviceLike = None) -> str:
        return self.get_device_properties(device).name

    def get_device_capability(self, device: DeviceLike = None) -> tuple[int, int]:
        properties = self.get_device_properties(device)
        return properties.major, properties.minor

    def can_device_access_peer(self, device: DeviceLike, peer: DeviceLike) -> bool:
        """Whether one device reaches the other's memory: all of a machine do. Raises for one that is not there."""
        machine = active.simulator()
        return all(0 <= machine.index_of(one) < len(machine.devices) for one in (device, peer))

    # Order.

    def synchronize(self, device: DeviceLike = None) -> None:
        active.simulator().synchronize(device)

    def current_stream(self, device: DeviceLike = None) -> SimStream:
        machine = self._visited("current_stream", device)
        machine.initialize()
        return machine.current_stream(device)

    def default_stream(self, device: DeviceLike = None) -> SimStream:
        machine = self._visited("default_stream", device)
        machine.initialize()
        return machine.device(device).default_stream

    def set_stream(self, stream: SimStream) -> None:
        self._visited("set_stream").set_stream(stream)

    def stream(self, stream: SimStream | None) -> AbstractContextManager[None]:
        """Make `stream` and its device current for a block; None changes nothing."""
        return nullcontext() if stream is None else _use(stream)

    def busy(self, seconds: float, stream: SimStream | None = None) -> None:
        """Queue work that does nothing for `seconds` of the device's time, on the current stream by default."""
        machine = self._visited("busy")
        machine.initialize()
        (machine.current_stream() if stream is None else stream).submit("busy", seconds)

    # Memory.

    def empty_cache(self) -> None:
        active.simulator().empty_cache()

    def memory_stats(self, device: DeviceLike = None) -> dict[str, int]:
        """Counters by dotted key; empty before the device is initialised, and in a forked child."""
        machine = self._visited("memory_stats", device)
        return machine.device(device).allocator.stats() if self.is_initialized() else {}

    def memory_allocated(self, device: DeviceLike = None) -> int:
        return self.memory_stats(device).get("allocated_bytes.all.current", 0)

    def max_memory_allocated(self, device: DeviceLike = None) -> int:
        return self.memory_stats(device).get("allocated_bytes.all.peak", 0)

    def memory_reserved(self, device: DeviceLike = None) -> int:
        return self.memory_stats(device).get("reserved_bytes.all.current", 0)

    def max_memory_reserved(self, device: DeviceLike = None) -> int:
        return self.memory_stats(device).get("reserved_bytes.all.peak", 0)

    def reset_peak_memory_stats(self, device: DeviceLike = None) -> None:
        machine = self._visited("reset_peak_memory_stats", device)
        machine.initialize()
        machine.device(device).allocator.counters.reset_peaks()

    def reset_accumulated_memory_stats(self, device: DeviceLike = None) -> None:
        machine = self._visited("reset_accumulated_memory_stats", device)
        machine.initialize()
        machine.device(device).allocator.counters.reset_accumulated()

    def mem_get_info(self, device: DeviceLike = None) -> tuple[int, int]:
        """(free, total) bytes as the driver sees them, over all processes. Initialises, as the vendors' does."""
        machine = self._visited("mem_get_info", device)
        machine.initialize()
        memory = machine.device(device).memory
        return memory.counted, memory.total

    def memory_snapshot(self, device: DeviceLike = None) -> list[dict[str, object]]:
        """The segments of `device`, else of all devices, each with the index of its own."""
        machine = self._visited("memory_snapshot", device)
        devices = machine.devices if device is None else [machine.device(device)]
        return [{"device": one.index, **segment} for one in devices for segment in one.allocator.snapshot()]

    def set_per_process_memory_fraction(self, fraction: float, device: DeviceLike = None) -> None:
        machine = self._visited("set_per_process_memory_fraction", device)
        machine.initialize()
        machine.device(device).set_fraction(fraction)

    def get_per_process_memory_fraction(self, device: DeviceLike = None) -> float:
        return self._visited("get_per_process_memory_fraction", device).device(device).fraction

    def host_memory_stats(self) -> dict[str, int]:
        machine = self._visited("host_memory_stats")
        return machine.pinned.stats() if self.is_initialized() else {}

    def host_empty_cache(self) -> None:
        self._visited("host_empty_cache").pinned.empty()

    def create_pool(self, device: DeviceLike = None) -> int:
        """A private memory pool, as graph capture has; for :meth:`use_mem_pool` and :meth:`release_pool`."""
        return self._visited("create_pool", device).device(device).allocator.create_pool()

    @contextmanager
    def use_mem_pool(self, pool: int, device: DeviceLike = None) -> Iterator[None]:
        """Allocate from a private pool for a block, in this thread."""
        found = active.simulator().device(device)
        before = found.use_pool(pool)
        try:
            yield
        finally:
            found.use_pool(before)

    def release_pool(self, pool: int, device: DeviceLike = None) -> None:
        active.simulator().device(device).allocator.release_pool(pool)

    # Random numbers.

    def manual_seed(self, seed: int) -> None:
        self._visited("manual_seed").device().generator.manual_seed(int(seed))

    def manual_seed_all(self, seed: int) -> None:
        for found in self._visited("manual_seed_all").devices:
            found.generator.manual_seed(int(seed))

    def initial_seed(self) -> int:
        return active.simulator().device().generator.initial_seed()

    def get_rng_state(self, device: DeviceLike = None) -> torch.Tensor:
        return self._visited("get_rng_state", device).device(device).generator.get_state()

    def set_rng_state(self, state: torch.Tensor, device: DeviceLike = None) -> None:
        generator = self._visited("set_rng_state", device).device(device).generator
        # torch reads a state from where its storage begins: of a view it would take another, or crash.
        generator.set_state(state.clone(memory_format=torch.contiguous_format))

    # What it can and cannot.

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_current_stream_capturing(self) -> bool:
        return active.simulator().device().capturing is not None

    def _visited(self, operation: str, device: DeviceLike = None) -> Simulator:
        machine = active.simulator()
        if machine.scripted:
            machine.device(device).visit(operation)
        return machine


@contextmanager
def _use(stream: SimStream) -> Iterator[None]:
    machine = active.simulator()
    device, on_its_device = machine.index_of(), machine.current_stream(stream.device_index)
    machine.set_device(stream.device_index)
    machine.set_stream(stream)
    try:
        yield
    finally:
        machine.set_stream(on_its_device)
        machine.set_device(device)
