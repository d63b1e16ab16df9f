"""The simulated accelerator as a devicekit backend: every hook of the contract, registered in this process."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from devicekit.contract import hookimpl
from devicekit.contract.causes import chain
from devicekit.contract.errors import UnsupportedHook
from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream
from devicekit.contract.manifest import Manifest
from devicekit.contract.records import (
    AllocatorSetting,
    AllocatorState,
    DeviceProperties,
    ErrorKind,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    ProcessMemory,
    Telemetry,
)
from devicekit.registry import Candidate, discover, register_backend
from devicekit.testing import active
from devicekit.testing.errors import DeviceLost, ForkedAfterUse, NotEnabled, WrongDevice
from devicekit.testing.graphs import SimGraph, SimGraphPool
from devicekit.testing.install import enable
from devicekit.testing.ipc import export_tensor, import_tensor
from devicekit.testing.module import SimModule
from devicekit.testing.simulator import Simulator
from devicekit.testing.streams import SimEvent, own

__all__ = ["SimBackend", "SimPool", "manifest", "register"]

_SOURCE = f"torch.{active.DEVICE_TYPE}"
_PRIORITIES = (0, -1)  # lowest and highest
_sim = SimModule()
_KINDS: dict[ErrorKind, tuple[type[BaseException], ...]] = {
    ErrorKind.OUT_OF_MEMORY: (torch.OutOfMemoryError,),
    ErrorKind.DEVICE_LOST: (DeviceLost,),
    ErrorKind.WRONG_DEVICE: (WrongDevice,),
    ErrorKind.NOT_INITIALISED: (ForkedAfterUse, NotEnabled),
}


def manifest() -> Manifest:
    """What the backend's ``backend.toml`` would say of the machine in use."""
    capabilities = [
        "driver_memory", "events", "graphs", "ipc", "memory_fraction", "memory_pools", "peak_memory",
        "pinned_memory", "rng_state", "streams", "stream_control", "shared_graph_pools", "host_registration",
        "tunable_allocator",
    ]  # fmt: skip
    config = active.simulator().config
    if config.caching:
        capabilities.append("caching_allocator")
    if config.unified_memory:
        capabilities.append("unified_memory")
    if not config.blocking_launches:
        capabilities.append("async_copies")
    table = {
        "name": active.DEVICE_TYPE,
        "device_type": active.DEVICE_TYPE,
        "contract": ">=1.0,<2",
        "torch": ">=2.10",
        "probe_order": 10,
        "collective_backend": "gloo",
        # Exported memory is freed with the exporter's tensor: there is nothing to wait for.
        # Work is sent off as it is submitted.
        "noop": ["collect_ipc", "submit_work"],
        "capabilities": capabilities,
    }
    return Manifest.parse({"backend": table})


def register() -> Candidate:
    """Give this process the simulated accelerator, if it has none, and offer it as backend ``sim``.

    Called again, it returns the candidate that is there. Raises CannotEnable as `devicekit.testing.enable` does.
    """
    enable()
    for candidate in discover():
        if candidate.factory is SimBackend:
            return candidate
    return register_backend(SimBackend, manifest())


class SimPool:
    """A private memory pool of one device. Dropped, it is released."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._pool = _sim.create_pool(index)
        allocator = active.simulator().device(index).allocator
        self._end = weakref.finalize(self, allocator.release_pool, self._pool)
        self._end.atexit = False

    def use(self) -> AbstractContextManager[None]:
        return _sim.use_mem_pool(self._pool, self._index)

    def release(self) -> None:
        """Let ``empty_cache`` take the pool's free segments back."""
        self._end()


class SimBackend:
    """Hooks over whichever simulated machine is in use when they are called."""

    @hookimpl
    def is_available(self) -> bool:
        return _sim.is_available()

    @hookimpl
    def device_count(self) -> int:
        return _sim.device_count()

    @hookimpl
    def current_index(self) -> int:
        return _sim.current_device()

    @hookimpl
    def set_index(self, index: int) -> None:
        _sim.set_device(index)

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        properties = _sim.get_device_properties(index)
        return DeviceProperties(
            name=properties.name,
            total_memory=properties.total_memory,
            uuid=properties.uuid,
            architecture=f"{properties.major}.{properties.minor}",
            compute_units=properties.multi_processor_count,
            unified_memory=properties.is_integrated,
            driver=properties.driver_version,
            capability=(properties.major, properties.minor),
            physical_index=index,
        )

    @hookimpl
    def supported_dtypes(self, index: int) -> frozenset[torch.dtype] | None:
        return frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

    @hookimpl
    def can_access_peer(self, index: int, peer: int) -> bool:
        return _sim.can_device_access_peer(index, peer)

    @hookimpl
    def synchronize(self, index: int) -> None:
        _sim.synchronize(index)

    @hookimpl
    def current_stream(self, index: int) -> Stream:
        return _sim.current_stream(index)

    @hookimpl
    def create_stream(self, index: int, priority: int) -> Stream:
        return _initialized(index).create_stream(index, max(_PRIORITIES[1], min(priority, _PRIORITIES[0])))

    @hookimpl
    def use_stream(self, stream: Stream) -> AbstractContextManager[object]:
        return _sim.stream(own(stream))

    @hookimpl
    def set_current_stream(self, stream: Stream) -> None:
        _sim.set_stream(own(stream))

    @hookimpl
    def default_stream(self, index: int) -> Stream:
        return _sim.default_stream(index)

    @hookimpl
    def native_handle(self, stream: Stream) -> int:
        return own(stream).stream_id

    @hookimpl
    def priority_range(self, index: int) -> tuple[int, int] | None:
        return _PRIORITIES

    @hookimpl
    def create_event(self, index: int, timing: bool, interprocess: bool = False) -> Event:
        if interprocess:
            raise UnsupportedHook(
                "The simulated accelerator lives in one process: its events cannot be shared.",
                backend=active.DEVICE_TYPE,
                hook="create_event",
            )
        _initialized(index)
        return SimEvent(enable_timing=timing)

    @hookimpl
    def submit_work(self, index: int) -> None:
        """Nothing waits to be sent off."""

    @hookimpl
    def is_capturing(self, index: int) -> bool:
        return active.simulator().device(index).capturing is not None

    @hookimpl
    def create_graph(self, index: int, pool: object | None = None) -> DeviceGraph:
        return SimGraph(_initialized(index).device(index), pool)

    @hookimpl
    def graph_pool(self, index: int) -> object:
        return SimGraphPool(_initialized(index).device(index))

    @hookimpl
    def empty_cache(self) -> None:
        _sim.empty_cache()

    @hookimpl
    def empty_host_cache(self) -> None:
        _sim.host_empty_cache()

    @hookimpl
    def collect_ipc(self) -> None:
        """Nothing is held for other processes."""

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        machine = active.simulator()
        if machine.in_bad_fork():
            return MemoryStats(AllocatorState.BAD_FORK, _SOURCE)
        raw = _sim.memory_stats(index)
        if not machine.initialized:
            return MemoryStats(AllocatorState.UNINITIALISED, _SOURCE)
        return MemoryStats(
            state=AllocatorState.OK,
            source=_SOURCE,
            allocated=raw["allocated_bytes.all.current"],
            requested=raw["requested_bytes.all.current"],
            active=raw["active_bytes.all.current"],
            reserved=raw["reserved_bytes.all.current"],
            inactive_split=raw["inactive_split_bytes.all.current"],
            peak_allocated=raw["allocated_bytes.all.peak"],
            peak_active=raw["active_bytes.all.peak"],
            peak_reserved=raw["reserved_bytes.all.peak"],
            num_alloc_retries=raw["num_alloc_retries"],
            num_ooms=raw["num_ooms"],
            num_device_alloc=raw["num_device_alloc"],
            num_device_free=raw["num_device_free"],
            num_segments=raw["segment.all.current"],
            raw=raw,
        )

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        free, total = _sim.mem_get_info(index)
        return MemoryInfo(free, total, "runtime")

    @hookimpl
    def process_memory(self, index: int) -> Sequence[ProcessMemory] | None:
        held: Counter[int] = Counter()
        for holder, nbytes in active.simulator().device(index).memory.holders().items():
            held[holder.pid] += nbytes
        return [ProcessMemory(pid, used) for pid, used in held.items()]

    @hookimpl
    def host_memory_stats(self) -> HostMemoryStats:
        raw = _sim.host_memory_stats()
        # A pinned pool calls "allocated" what it owns, and "active" what callers hold.
        return HostMemoryStats(raw.get("active_bytes.current"), raw.get("allocated_bytes.current"))

    @hookimpl
    def memory_snapshot(self, index: int) -> Sequence[Mapping[str, object]] | None:
        return None if _sim._is_in_bad_fork() else _sim.memory_snapshot(index)

    @hookimpl
    def reset_peak_memory_stats(self, index: int) -> None:
        if _sim.is_initialized():
            _sim.reset_peak_memory_stats(index)

    @hookimpl
    def telemetry(self, index: int) -> Telemetry:
        # Made-up, as the whole machine is; a busy device is warmer.
        device = active.simulator().device(index)
        busy = device.tail > device.clock.now()
        return Telemetry(70.0 if busy else 40.0, 300.0 if busy else 60.0, float(busy), 1_500_000_000)

    @hookimpl
    def allocator_settings(self) -> Sequence[AllocatorSetting] | None:
        return active.simulator().allocator_settings()

    @hookimpl
    def set_allocator_setting(self, name: str, value: str) -> None:
        active.simulator().set_allocator_setting(name, value)

    @hookimpl
    def set_memory_fraction(self, index: int, fraction: float) -> None:
        _sim.set_per_process_memory_fraction(fraction, index)

    @hookimpl
    def memory_pool(self, index: int) -> MemoryPool:
        return SimPool(index)

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        for one in chain(error):
            for kind, types in _KINDS.items():
                # By the type alone: an object may lie about its class, or fail when it is asked.
                if issubclass(type(one), types):
                    return kind
        return None

    @hookimpl
    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu":
            raise ValueError(f"only tensors of the host can be pinned, not one on {tensor.device}")
        return tensor.pin_memory()

    @hookimpl
    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return active.simulator().pinned.is_pinned(tensor)

    @hookimpl
    def register_host_memory(self, tensor: torch.Tensor) -> None:
        active.simulator().pinned.register(tensor)

    @hookimpl
    def unregister_host_memory(self, tensor: torch.Tensor) -> None:
        active.simulator().pinned.unregister(tensor)

    @hookimpl
    def copies_overlap(self, index: int) -> bool:
        return not active.simulator().config.blocking_launches

    @hookimpl
    def manual_seed(self, index: int, seed: int) -> None:
        active.simulator().device(index).generator.manual_seed(seed)

    @hookimpl
    def get_rng_state(self, index: int) -> torch.Tensor:
        return _sim.get_rng_state(index)

    @hookimpl
    def set_rng_state(self, index: int, state: torch.Tensor) -> None:
        _sim.set_rng_state(state, index)

    @hookimpl
    def collective_backend(self) -> str:
        return "gloo"

    @hookimpl
    def visible_devices_variable(self) -> str | None:
        return None

    @hookimpl
    def is_bad_fork(self) -> bool:
        return active.simulator().in_bad_fork()

    @hookimpl
    def export_ipc(self, tensor: torch.Tensor) -> object:
        return export_tensor(tensor)

    @hookimpl
    def import_ipc(self, handle: object) -> torch.Tensor:
        return import_tensor(handle)

    @hookimpl
    def profiler_activity(self) -> torch.profiler.ProfilerActivity | None:
        # The device's work is done by the host, and that is where the profiler sees it.
        return torch.profiler.ProfilerActivity.CPU

    @hookimpl
    def record_memory_history(self, index: int, enabled: bool) -> None:
        machine = _initialized(index) if enabled else active.simulator()
        machine.device(index).allocator.record_history = enabled


def _initialized(index: int) -> Simulator:
    machine = active.simulator()
    machine.index_of(index)
    machine.initialize()
    return machine
