"""Device: the one handle that engine code holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from devicekit import dispatch
from devicekit.contract.errors import UnsupportedHook
from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream
from devicekit.contract.hooks import HOOKS
from devicekit.contract.records import (
    DeviceProperties,
    ErrorKind,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    ProcessMemory,
    ReleaseResult,
)
from devicekit.registry.opened import OpenedBackend

if TYPE_CHECKING:
    from collections.abc import Iterator


class Device:
    """One index of one opened backend. Get it from `get_device`; there is one per index and process.

    Every hook of the contract is an attribute or method of the same name, without the index. What happens when
    the backend lacks a hook depends on the hook's kind: ordering hooks raise `UnsupportedHook`, releasing hooks
    do nothing and say so, observing hooks answer ``None`` or a record full of ``None``.
    """

    # A dict gives each slot its docstring: help(Device) reads like help of any class.
    __slots__ = {
        "__weakref__": None,
        "backend": "The opened backend.",
        "index": "Index of this device within the backend.",
        "torch_device": "The ``torch.device`` to allocate on with plain torch.",
        "synchronize": "Block until all work submitted to this device, on every stream, has finished.",
        "current_stream": "The calling thread's current stream.",
        "use_stream": "use_stream(stream): a context in which ``stream`` is current.",
        "create_graph": "A new, empty graph.",
        "memory_stats": "This process's allocator, as MemoryStats. Changes nothing.",
        "memory_info": "The driver's free and total bytes, as MemoryInfo.",
        "host_memory_stats": "The cache of pinned host memory, as HostMemoryStats.",
        "properties": "What the device is, as DeviceProperties.",
        "is_capturing": "Whether the current stream captures a graph; None if unknown.",
        "copies_overlap": "Whether copies run beside computation; None if unknown.",
        "memory_pool": "A new private allocator pool.",
        "pin_memory": "pin_memory(tensor): a page-locked copy of a host tensor.",
        "manual_seed": "manual_seed(seed): seed the default generator.",
        "get_rng_state": "The default generator's state, a uint8 host tensor.",
        "set_rng_state": "set_rng_state(state): restore what get_rng_state returned.",
        "set_memory_fraction": "set_memory_fraction(fraction): limit this process's share, 0 to 1.",
        "record_memory_history": "record_memory_history(enabled): start or stop recording allocations.",
        "export_ipc": "export_ipc(tensor): a picklable handle for another process.",
        "import_ipc": "import_ipc(handle): the tensor behind another process's handle.",
        "current_index": "Index of the calling thread's current device.",
        "process_memory": "Who holds memory on this device; None where the vendor cannot be asked.",
        "memory_snapshot": "The allocator's segments and blocks in the vendor's own form; None if it has none.",
        "collective_backend": "Name to give torch.distributed.init_process_group; None if unknown.",
        "visible_devices_variable": "Environment variable that limits the devices a process sees.",
        "is_bad_fork": "Whether this process was forked after its parent initialised the device; None if unknown.",
        "profiler_activity": "The activity that makes torch.profiler record this device.",
        "_set_index": None,
        "_create_stream": None,
        "_create_event": None,
        "_empty_cache": None,
        "_empty_host_cache": None,
        "_collect_ipc": None,
        "_reset_peak": None,
        "_implemented": None,
    }

    backend: OpenedBackend
    index: int
    torch_device: torch.device
    synchronize: Callable[[], None]
    current_stream: Callable[[], Stream]
    use_stream: Callable[[Stream], AbstractContextManager[object]]
    create_graph: Callable[[], DeviceGraph]
    memory_stats: Callable[[], MemoryStats]
    memory_info: Callable[[], MemoryInfo]
    host_memory_stats: Callable[[], HostMemoryStats]
    properties: Callable[[], DeviceProperties]
    is_capturing: Callable[[], bool | None]
    copies_overlap: Callable[[], bool | None]
    memory_pool: Callable[[], MemoryPool]
    pin_memory: Callable[[torch.Tensor], torch.Tensor]
    manual_seed: Callable[[int], None]
    get_rng_state: Callable[[], torch.Tensor]
    set_rng_state: Callable[[torch.Tensor], None]
    set_memory_fraction: Callable[[float], None]
    record_memory_history: Callable[[bool], None]
    export_ipc: Callable[[torch.Tensor], object]
    import_ipc: Callable[[object], torch.Tensor]
    current_index: Callable[[], int]
    process_memory: Callable[[], Sequence[ProcessMemory] | None]
    memory_snapshot: Callable[[], Sequence[Mapping[str, object]] | None]
    collective_backend: Callable[[], str | None]
    visible_devices_variable: Callable[[], str | None]
    is_bad_fork: Callable[[], bool | None]
    profiler_activity: Callable[[], torch.profiler.ProfilerActivity | None]
    _set_index: Callable[[int], object]
    _create_stream: Callable[[int], Stream]
    _create_event: Callable[[bool], Event]
    _empty_cache: Callable[[], None]
    _empty_host_cache: Callable[[], None]
    _collect_ipc: Callable[[], None]
    _reset_peak: Callable[[], None]
    _implemented: frozenset[str]

    def __init__(self, backend: OpenedBackend, index: int) -> None:
        self.backend = backend
        self.index = index
        manifest = backend.manifest
        self.torch_device = (
            torch.device(manifest.device_type, index)
            if manifest.indexed
            else torch.device(manifest.device_type)
        )
        backend.on_recompile(self._compile)

    def _compile(self) -> None:
        """Bind every hook once; calls then pay for no lookup."""
        self._implemented = self.backend.implemented
        for slot, hook in _SLOTS.items():
            setattr(self, slot, dispatch.compile_hook(self.backend, hook, self.index))
        # Restoring the previous device takes another index than this one's.
        self._set_index = dispatch.compile_hook(self.backend, "set_index")

    def __repr__(self) -> str:
        return f"<Device {self.name}:{self.index} of {self.backend.label}>"

    def __reduce__(self) -> tuple[Callable[..., Device], tuple[str]]:
        return _reopen, (f"{self.name}:{self.index}",)

    @property
    def name(self) -> str:
        """The backend's name, for logs. Engine code asks `supports` instead of comparing names."""
        return self.backend.name

    # -- Asking first -----------------------------------------------------------------------------------------

    def supports(self, hook: str) -> bool:
        """Whether the backend implements ``hook``.

        Raises:
            ValueError: the contract has no such hook.
        """
        if hook in self._implemented:
            return True
        if hook not in HOOKS:
            raise ValueError(f"The device contract has no hook {hook!r}.")
        return False

    def require(self, *hooks: str) -> None:
        """Raise `UnsupportedHook` naming every one of ``hooks`` that the backend lacks."""
        absent = [hook for hook in hooks if not self.supports(hook)]
        if absent:
            raise UnsupportedHook(
                f"Backend {self.backend.label} lacks {', '.join(absent)}, which this operation needs.",
                backend=self.name,
                hook=absent[0],
            )

    # -- Ordering ---------------------------------------------------------------------------------------------

    def create_stream(self, priority: int = 0) -> Stream:
        """A new stream. Lower priorities run first."""
        return self._create_stream(priority)

    def create_event(self, *, timing: bool = False) -> Event:
        """A new event; with ``timing`` it has ``elapsed_time(end)`` in milliseconds."""
        return self._create_event(timing)

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
            self._set_index(self.index)
            yield
        finally:
            self._set_index(previous)

    # -- Releasing --------------------------------------------------------------------------------------------

    def empty_cache(self) -> ReleaseResult:
        """Hand unused allocator blocks back to the driver, and report what that gave.

        Reaches every device of this process; the bytes reported are this device's. Synchronises, so engine code
        empties at named release points only.
        """
        return self._release("empty_cache", self._empty_cache, lambda: self.memory_stats().reserved)

    def release_cache(self) -> bool:
        """As `empty_cache`, measuring nothing. False: the backend lacks the hook, and nothing happened."""
        if "empty_cache" not in self._implemented:
            return False
        self._empty_cache()
        return True

    def empty_host_cache(self) -> ReleaseResult:
        """Hand unused pinned host memory back to the operating system; the bytes are the host cache's."""
        return self._release(
            "empty_host_cache", self._empty_host_cache, lambda: self.host_memory_stats().reserved
        )

    def collect_ipc(self) -> ReleaseResult:
        """Release memory that other processes have finished using."""
        return self._release("collect_ipc", self._collect_ipc, lambda: self.memory_stats().reserved)

    def reset_peak_memory_stats(self) -> bool:
        """Make every peak equal to its current value. False: this backend has no peaks to reset."""
        if "reset_peak_memory_stats" not in self._implemented:
            return False
        self._reset_peak()
        return True

    def _release(
        self, hook: str, release: Callable[..., object], reserved: Callable[[], int | None]
    ) -> ReleaseResult:
        if hook not in self._implemented:
            return ReleaseResult(False, f"backend {self.backend.label} does not implement {hook}")
        before = reserved()
        started = time.perf_counter()
        release()
        seconds = time.perf_counter() - started
        return ReleaseResult(True, None, before, reserved(), seconds)

    # -- Failure ----------------------------------------------------------------------------------------------

    def classify_error(self, error: BaseException) -> ErrorKind | None:
        """What ``error`` means on this backend; ``None`` if it is none of its errors. Never raises."""
        return dispatch.classify(self.backend, error)


def _reopen(spec: str) -> Device:
    """Unpickle: the same device of the reading process."""
    from devicekit.opening import get_device

    return get_device(spec)


_WRAPPED = {  # hooks that a method of Device stands in front of
    "_create_stream": "create_stream",
    "_create_event": "create_event",
    "_empty_cache": "empty_cache",
    "_empty_host_cache": "empty_host_cache",
    "_collect_ipc": "collect_ipc",
    "_reset_peak": "reset_peak_memory_stats",
    "properties": "device_properties",
}
_SLOTS = _WRAPPED | {name: name for name in Device.__slots__ if name in HOOKS}
