"""Device: the one handle that engine code holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, overload

import torch

from devicekit.contract.errors import UnsupportedHook
from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream, TimingEvent
from devicekit.contract.hooks import HOOKS, BackendSpec
from devicekit.contract.records import (
    AllocatorState,
    DeviceProperties,
    ErrorKind,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    ProcessMemory,
    ReleaseResult,
)
from devicekit.device import dispatch
from devicekit.device.controls import DeviceControls
from devicekit.registry.opened import OpenedBackend

if TYPE_CHECKING:
    from collections.abc import Iterator


class Device(DeviceControls):
    """One index of one opened backend. Get it from `devicekit.get_device`; there is one per index and process.

    Every hook of the contract is a method of the same name, without the index. What happens when the backend lacks
    a hook depends on the hook's kind: ordering hooks raise `UnsupportedHook`, releasing hooks do nothing and say
    so, observing hooks answer ``None`` or a record full of ``None``.

    Any method may raise `HookError` (the vendor's function raised; it names backend and hook and chains the cause)
    or `HookResultError` (it returned something the contract does not allow). Out of memory keeps its own type.
    """

    __slots__ = ("__weakref__", "_hooks", "backend", "index", "torch_device")

    backend: OpenedBackend
    index: int
    torch_device: torch.device  # to allocate on with plain torch
    _hooks: BackendSpec  # the backend's hooks behind checks, absent ones included

    def __init__(self, backend: OpenedBackend, index: int) -> None:
        self.backend = backend
        self.index = index
        kind = backend.manifest.device_type
        self.torch_device = torch.device(kind, index) if backend.manifest.indexed else torch.device(kind)
        backend.on_recompile(self._take_hooks)

    def _take_hooks(self) -> None:
        """Take the backend's hooks anew: called whenever an observer comes or goes."""
        self._hooks = dispatch.guarded(self.backend)

    def __repr__(self) -> str:
        return f"<Device {self.name}:{self.index} of {self.backend.label}>"

    @property
    def name(self) -> str:
        """The backend's name, for logs. Engine code asks `supports` instead of comparing names."""
        return self.backend.name

    def supports(self, hook: str) -> bool:
        """Whether the backend implements ``hook``.

        Raises:
            ValueError: the contract has no such hook.
        """
        if hook in self.backend.implemented:
            return True
        if hook not in HOOKS:
            raise ValueError(f"The device contract has no hook {hook!r}.")
        return False

    def require(self, *hooks: str) -> None:
        """Raise `UnsupportedHook` naming every one of ``hooks`` that the backend lacks."""
        absent = [hook for hook in hooks if not self.supports(hook)]
        if absent:
            message = f"Backend {self.backend.label} lacks {', '.join(absent)}, which this operation needs."
            raise UnsupportedHook(message, backend=self.name, hook=absent[0])

    # -- Ordering ---------------------------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Block until all work submitted to this device, on every stream, has finished."""
        self._hooks.synchronize(self.index)

    def current_stream(self) -> Stream:
        """The calling thread's current stream."""
        return self._hooks.current_stream(self.index)

    def create_stream(self, priority: int = 0) -> Stream:
        """A new stream. Lower priorities run first."""
        return self._hooks.create_stream(self.index, priority)

    def use_stream(self, stream: Stream | None) -> AbstractContextManager[object]:
        """A context in which ``stream`` is current; the previous one is restored on every exit.

        ``None`` changes nothing, on a device without streams too, as with torch's own.
        """
        return nullcontext() if stream is None else self._hooks.use_stream(stream)

    @overload
    def create_event(self, *, timing: Literal[True], interprocess: bool = False) -> TimingEvent: ...

    @overload
    def create_event(self, *, timing: bool = False, interprocess: bool = False) -> Event: ...

    def create_event(self, *, timing: bool = False, interprocess: bool = False) -> Event:
        """A new event; with ``timing`` it has ``elapsed_time(end)`` in milliseconds.

        With ``interprocess`` it can be exported to another process.
        """
        return self._hooks.create_event(self.index, timing, interprocess)

    def create_graph(self, *, pool: object | None = None) -> DeviceGraph:
        """A new, empty graph; captures with one ``pool`` (of `graph_pool`) share their memory."""
        return self._hooks.create_graph(self.index, pool)

    def is_capturing(self) -> bool | None:
        """Whether the current stream captures a graph; ``None`` if unknown."""
        return self._hooks.is_capturing(self.index)

    def current_index(self) -> int:
        """Index of the calling thread's current device of this backend."""
        return self._hooks.current_index()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this device the calling thread's current one; the previous one is restored on every exit.

        Raises:
            UnsupportedHook: the backend cannot switch devices, and this is not its only one.
        """
        if not self.backend.manifest.indexed:
            yield
            return
        self.require("current_index", "set_index")
        previous = self.current_index()
        if previous == self.index:
            yield
            return
        try:
            self._hooks.set_index(self.index)
            yield
        finally:
            self._hooks.set_index(previous)

    # -- Releasing --------------------------------------------------------------------------------------------

    def empty_cache(self) -> ReleaseResult:
        """Hand unused allocator blocks back to the driver, and report what that gave.

        Reaches every device of this process; the bytes reported are this device's. Synchronises, so engine code
        empties at named release points only.
        """
        return self._release("empty_cache", self._hooks.empty_cache, lambda: self.memory_stats().reserved)

    def release_cache(self) -> bool:
        """As `empty_cache`, measuring nothing. False: the backend lacks the hook, and nothing happened."""
        if "empty_cache" not in self.backend.implemented:
            return False
        with self._releasing():
            self._hooks.empty_cache()
        return True

    def empty_host_cache(self) -> ReleaseResult:
        """Hand unused pinned host memory back to the operating system; the bytes are the host cache's."""
        return self._release(
            "empty_host_cache", self._hooks.empty_host_cache, lambda: self.host_memory_stats().reserved
        )

    def collect_ipc(self) -> ReleaseResult:
        """Release memory that other processes have finished using."""
        return self._release("collect_ipc", self._hooks.collect_ipc, lambda: self.memory_stats().reserved)

    def reset_peak_memory_stats(self) -> bool:
        """Make every peak equal to its current value. False: this backend has no peaks to reset."""
        if not self.supports("reset_peak_memory_stats"):
            return False
        self._hooks.reset_peak_memory_stats(self.index)
        return True

    def _release(
        self, hook: str, release: Callable[[], None], reserved: Callable[[], int | None]
    ) -> ReleaseResult:
        if not self.supports(hook):
            return ReleaseResult(False, f"backend {self.backend.label} does not implement {hook}")
        before = reserved()
        with self._releasing():
            started = time.perf_counter()
            release()
            seconds = time.perf_counter() - started
        return ReleaseResult(True, None, before, reserved(), seconds)

    def _releasing(self) -> AbstractContextManager[None]:
        """A block in which the right device is current, for vendors' functions that take no index."""
        if not self.switches:
            return nullcontext()
        # Before the first use there is nothing to release, and to ask for the current device would initialise.
        unused = self.memory_stats().state in (AllocatorState.UNINITIALISED, AllocatorState.BAD_FORK)
        return nullcontext() if unused else self.current()

    # -- Observing --------------------------------------------------------------------------------------------

    def memory_stats(self) -> MemoryStats:
        """This process's allocator, in bytes. Changes nothing."""
        return self._hooks.memory_stats(self.index)

    def memory_info(self) -> MemoryInfo:
        """The driver's free and total bytes, every process included."""
        return self._hooks.memory_info(self.index)

    def host_memory_stats(self) -> HostMemoryStats:
        """The cache of pinned host memory, in bytes."""
        return self._hooks.host_memory_stats()

    def process_memory(self) -> Sequence[ProcessMemory] | None:
        """Who holds memory on this device; ``None`` where the vendor cannot be asked."""
        return self._hooks.process_memory(self.index)

    def memory_snapshot(self) -> Sequence[Mapping[str, object]] | None:
        """The allocator's segments and blocks in the vendor's own form; ``None`` where they cannot be seen."""
        return self._hooks.memory_snapshot(self.index)

    def properties(self) -> DeviceProperties:
        """What the device is."""
        return self._hooks.device_properties(self.index)

    def classify_error(self, error: BaseException) -> ErrorKind | None:
        """What ``error`` means on this backend; ``None`` if it is none of its errors. Never raises."""
        return dispatch.classify(self.backend, error)

    # -- Limits, host side, random ----------------------------------------------------------------------------

    def set_memory_fraction(self, fraction: float) -> None:
        """Limit this process to ``fraction`` (0 to 1) of the device's total; beyond it, out of memory."""
        self._hooks.set_memory_fraction(self.index, float(fraction))

    def memory_pool(self) -> MemoryPool:
        """A new private allocator pool."""
        return self._hooks.memory_pool(self.index)

    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy of a host tensor."""
        with self.current_where_possible():
            return self._hooks.pin_memory(tensor)

    def copies_overlap(self) -> bool | None:
        """Whether copies from and to pinned memory run beside computation; ``None`` if unknown."""
        return self._hooks.copies_overlap(self.index)

    def manual_seed(self, seed: int) -> None:
        """Seed the default generator."""
        self._hooks.manual_seed(self.index, seed)

    def get_rng_state(self) -> torch.Tensor:
        """The default generator's state, a uint8 host tensor."""
        return self._hooks.get_rng_state(self.index)

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Restore what `get_rng_state` returned."""
        self._hooks.set_rng_state(self.index, state)

    # -- Processes and tools ----------------------------------------------------------------------------------

    def collective_backend(self) -> str | None:
        """Name to give ``torch.distributed.init_process_group``; ``None`` if unknown."""
        return self._hooks.collective_backend()

    def visible_devices_variable(self) -> str | None:
        """Environment variable that limits the devices a process sees."""
        return self._hooks.visible_devices_variable()

    def is_bad_fork(self) -> bool | None:
        """Whether this process was forked after its parent initialised the device; ``None`` if unknown."""
        return self._hooks.is_bad_fork()

    def export_ipc(self, tensor: torch.Tensor) -> object:
        """A picklable handle by which another process can map the tensor's memory."""
        with self.current_where_possible():
            return self._hooks.export_ipc(tensor)

    def import_ipc(self, handle: object) -> torch.Tensor:
        """The tensor behind a handle from `export_ipc` of another process."""
        with self.current_where_possible():
            return self._hooks.import_ipc(handle)

    def profiler_activity(self) -> torch.profiler.ProfilerActivity | None:
        """The activity that makes ``torch.profiler`` record this device."""
        return self._hooks.profiler_activity()

    def record_memory_history(self, enabled: bool) -> None:
        """Start or stop recording allocations for `memory_snapshot`."""
        self._hooks.record_memory_history(self.index, enabled)
