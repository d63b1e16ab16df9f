"""The hooks of any backend whose vendor ships a torch device module; a plugin subclasses it for its vendor.

Vendor functions are looked up at each call, so that what an engine patches on the module is honoured, and are
called positionally, because parameter names differ from vendor to vendor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypedDict

import torch

from devicekit.contract import (
    AllocatorSetting,
    AllocatorState,
    DeviceProperties,
    ErrorKind,
    Event,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    Stream,
    Telemetry,
    hookimpl,
)
from devicekit.contract.errors import UnsupportedHook
from devicekit.torchlike import allocator, ipc, pinned, properties, statistics
from devicekit.torchlike.errors import classify
from devicekit.torchlike.handles import TorchGraph, TorchMemoryPool, clamp_priority
from devicekit.torchlike.module import VendorModule
from devicekit.torchlike.needs import needs
from devicekit.torchlike.numbers import index_said, whole
from devicekit.torchlike.quirks import EMPTY_CACHE_IN_CAPTURE
from devicekit.torchlike.telemetry import read_telemetry


class _Place(TypedDict):
    capability: tuple[int, int] | None
    pci: str | None
    physical_index: int | None


class TorchModuleBackend(VendorModule):
    """Hooks over ``torch.<device type>``. Hooks whose vendor functions are missing are absent."""

    # -- Presence ---------------------------------------------------------------------------------------------

    @hookimpl
    @needs("device_count")
    def is_available(self) -> bool:
        # The vendor's is_available() asks the runtime, which poisons fork; device_count() asks the management
        # library first wherever the vendor has one.
        return self.device_count() > 0

    @hookimpl
    @needs("device_count")
    def device_count(self) -> int:
        return self._said("device_count") if self._is_built() else 0

    def _said(self, name: str) -> int:
        return index_said(getattr(self.module, name)(), f"torch.{self.vendor.device_type}.{name}")

    # -- Selection --------------------------------------------------------------------------------------------

    @hookimpl
    @needs("current_device")
    def current_index(self) -> int:
        return self._said("current_device")

    @hookimpl
    @needs("set_device")
    def set_index(self, index: int) -> None:
        self.module.set_device(index)

    @hookimpl
    @needs("get_device_properties")
    def device_properties(self, index: int) -> DeviceProperties:
        found = self.module.get_device_properties(index)
        return properties.device_properties(
            found,
            architecture=self._architecture(found),
            compute_units="multi_processor_count",
            driver=self._driver_version(index),
            **self._place(found, index),
        )

    def _place(self, found: object, index: int) -> _Place:
        """What `device_properties` says since contract 1.1."""
        physical, pci = self._physical(index)
        return {"capability": self._capability(found), "pci": pci, "physical_index": physical}

    @hookimpl
    @needs("get_device_properties")
    def supported_dtypes(self, index: int) -> frozenset[torch.dtype] | None:
        return self._dtypes(self.module.get_device_properties(index))

    @hookimpl
    @needs("can_device_access_peer")
    def can_access_peer(self, index: int, peer: int) -> bool:
        return index == peer or bool(self.module.can_device_access_peer(index, peer))

    # -- Ordering ---------------------------------------------------------------------------------------------

    @hookimpl
    @needs("synchronize")
    def synchronize(self, index: int) -> None:
        # Nothing was submitted to a device that was never used. A forked child still gets the vendor's error.
        if self._is_initialized() or self._in_bad_fork():
            self.module.synchronize(index)

    @hookimpl
    @needs("current_stream")
    def current_stream(self, index: int) -> Stream:
        stream: Stream = self.module.current_stream(index)
        return stream

    @hookimpl
    @needs("Stream")
    def create_stream(self, index: int, priority: int) -> Stream:
        stream: Stream = self.module.Stream(index, clamp_priority(self.module, priority))
        return stream

    @hookimpl
    @needs("stream")
    def use_stream(self, stream: Stream) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self.module.stream(stream)
        return context

    @hookimpl
    @needs("default_stream")
    def default_stream(self, index: int) -> Stream:
        stream: Stream = self.module.default_stream(index)
        return stream

    @hookimpl
    @needs("set_stream", "current_device", "set_device")
    def set_current_stream(self, stream: Stream) -> None:
        before = self.module.current_device()
        self.module.set_stream(stream)
        if self.module.current_device() != before:  # the vendors' functions go to the stream's device
            self.module.set_device(before)

    @hookimpl
    @needs("Stream")
    def native_handle(self, stream: Stream) -> int:
        return int(getattr(stream, str(self.vendor.stream_handle)))

    @hookimpl
    @needs("Stream.priority_range")
    def priority_range(self, index: int) -> tuple[int, int] | None:
        lowest, highest = self.module.Stream.priority_range()
        return int(lowest), int(highest)

    @hookimpl
    @needs("Event")
    def create_event(self, index: int, timing: bool, interprocess: bool = False) -> Event:
        if not interprocess:
            event: Event = self.module.Event(timing)
            return event
        if self.export_event is None:  # taken back: the vendor's events stay in their process
            raise UnsupportedHook(
                f"Events of torch.{self.vendor.device_type} cannot be shared with other processes.",
                backend=self.vendor.device_type,
                hook="create_event",
            )
        with self.module.device(index):
            shared: Event = self.module.Event(timing, False, True)
        return shared

    @hookimpl
    @needs("is_current_stream_capturing", "device", "current_device")
    def is_capturing(self, index: int) -> bool:
        if not self._is_used():  # the vendor's function raises then
            return False
        if self.module.current_device() == index:
            return bool(self.module.is_current_stream_capturing())
        with self.module.device(index):
            return bool(self.module.is_current_stream_capturing())

    @hookimpl
    @needs("graph", "device", "Stream")
    def create_graph(self, index: int, pool: object | None = None) -> TorchGraph:
        return TorchGraph(self.module, self.vendor.graph_class, index, pool)

    @hookimpl
    @needs("graph_pool_handle", "graph", "device")
    def graph_pool(self, index: int) -> object:
        with self.module.device(index):
            return self.module.graph_pool_handle()

    # -- Releasing --------------------------------------------------------------------------------------------

    @hookimpl
    @needs("empty_cache")
    def empty_cache(self) -> None:
        if not self._is_used():
            return
        if self._has_quirk(EMPTY_CACHE_IN_CAPTURE) and self._captures():
            return
        self._empty_cache()

    @hookimpl
    def empty_host_cache(self) -> None:
        if self._empty_host_cache is not None and self._is_used():
            self._empty_host_cache()

    @hookimpl
    @needs("ipc_collect")
    def collect_ipc(self) -> None:
        if self._is_used():  # the vendor's function initialises
            self.module.ipc_collect()

    # -- Observing --------------------------------------------------------------------------------------------

    @hookimpl
    @needs("memory_stats")
    def memory_stats(self, index: int) -> MemoryStats:
        # The vendor's answer in both cases is an empty mapping, or zeros.
        if self._in_bad_fork():
            return MemoryStats(AllocatorState.BAD_FORK, self._source)
        if not self._is_initialized():
            return MemoryStats(AllocatorState.UNINITIALISED, self._source)
        return statistics.memory_stats(self.module.memory_stats(index), self._source, self._keys)

    @hookimpl
    @needs("mem_get_info")
    def memory_info(self, index: int) -> MemoryInfo:
        if self._in_bad_fork():
            return MemoryInfo()
        free, total = self.module.mem_get_info(index)
        return MemoryInfo(whole(free), whole(total), "runtime")

    @hookimpl
    @needs("host_memory_stats")
    def host_memory_stats(self) -> HostMemoryStats:
        return statistics.host_memory_stats(self.module.host_memory_stats() if self._is_used() else {})

    @hookimpl
    @needs("memory_snapshot")
    def memory_snapshot(self, index: int) -> Sequence[Mapping[str, object]] | None:
        if self._in_bad_fork():
            return None
        if not self._is_initialized():
            return []
        # The vendor's answer is of all devices; a segment that names none is of the only one.
        return [segment for segment in self.module.memory_snapshot() if segment.get("device", index) == index]

    @hookimpl
    @needs("reset_peak_memory_stats")
    def reset_peak_memory_stats(self, index: int) -> None:
        if self._is_used():  # unguarded, it raises or initialises
            self.module.reset_peak_memory_stats(index)

    @hookimpl
    def telemetry(self, index: int) -> Telemetry:
        return read_telemetry(self.module, self.vendor.telemetry, index)

    # -- Limits and pools -------------------------------------------------------------------------------------

    @hookimpl
    @needs("set_per_process_memory_fraction")
    def set_memory_fraction(self, index: int, fraction: float) -> None:
        if not 0.0 <= fraction <= 1.0:  # nor NaN, which some vendors' own checks let through
            raise ValueError(f"a fraction is from 0 to 1, not {fraction!r}")
        self.module.set_per_process_memory_fraction(float(fraction), index)  # every vendor refuses an int

    @hookimpl
    @needs("MemPool", "use_mem_pool")
    def memory_pool(self, index: int) -> TorchMemoryPool:
        return TorchMemoryPool(self.module, index)

    @hookimpl
    def allocator_settings(self) -> Sequence[AllocatorSetting] | None:
        return allocator.settings()

    @hookimpl
    def set_allocator_setting(self, name: str, value: str) -> None:
        allocator.change(self.module, name, value)

    # -- Failure ----------------------------------------------------------------------------------------------

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return classify(error, self.vendor.errors)

    # -- Host side --------------------------------------------------------------------------------------------

    @hookimpl
    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        return pinned.pin(tensor)

    @hookimpl
    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return pinned.is_pinned(tensor)

    @hookimpl
    def copies_overlap(self, index: int) -> bool:
        return bool(self.vendor.copies_overlap)

    # -- Random -----------------------------------------------------------------------------------------------

    @hookimpl
    @needs("manual_seed", "device")
    def manual_seed(self, index: int, seed: int) -> None:
        # The vendor's function seeds whichever device is current by the time the process initialises.
        with self.module.device(index):
            self.module.manual_seed(seed)

    @hookimpl
    @needs("get_rng_state")
    def get_rng_state(self, index: int) -> torch.Tensor:
        state: torch.Tensor = self.module.get_rng_state(index)
        return state

    @hookimpl
    @needs("set_rng_state")
    def set_rng_state(self, index: int, state: torch.Tensor) -> None:
        # Vendors refuse a state that is not contiguous, or read a view of many from where its storage begins.
        self.module.set_rng_state(state.clone(memory_format=torch.contiguous_format), index)

    # -- Processes --------------------------------------------------------------------------------------------

    @hookimpl
    def collective_backend(self) -> str:
        return str(self.vendor.collective_backend)

    @hookimpl
    def visible_devices_variable(self) -> str | None:
        return self.vendor.visible_devices_variable

    @hookimpl
    @needs("_is_in_bad_fork")
    def is_bad_fork(self) -> bool:
        return bool(self.module._is_in_bad_fork())

    @hookimpl
    @needs("ipc_collect")
    def export_ipc(self, tensor: torch.Tensor) -> object:
        return ipc.export_tensor(tensor, self.vendor.device_type)

    @hookimpl
    @needs("ipc_collect")
    def import_ipc(self, handle: object) -> torch.Tensor:
        return ipc.import_tensor(handle, self.vendor.device_type)

    @hookimpl
    @needs("Event.ipc_handle", "Event.from_ipc_handle", "device")
    def export_event(self, event: Event) -> object:
        return ipc.export_event(event, self.vendor.device_type)

    @hookimpl
    @needs("Event.ipc_handle", "Event.from_ipc_handle", "device")
    def import_event(self, index: int, handle: object) -> Event:
        return ipc.import_event(self.module, self.vendor.device_type, index, handle)

    # -- Tools ------------------------------------------------------------------------------------------------

    @hookimpl
    def profiler_activity(self) -> torch.profiler.ProfilerActivity | None:
        found: torch.profiler.ProfilerActivity | None = getattr(
            torch.profiler.ProfilerActivity, self.vendor.profiler_activity, None
        )
        return found

    @hookimpl
    @needs("memory._record_memory_history")
    def record_memory_history(self, index: int, enabled: bool) -> None:
        if enabled or self._is_used():  # the vendor's function initialises
            self.module.memory._record_memory_history("all" if enabled else None)
