"""Device: the one handle that engine code holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from devicekit import dispatch
from devicekit.contract.errors import BackendUnavailable, InvalidDevice, UnknownBackend, UnsupportedHook
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
from devicekit.registry.discovery import discover
from devicekit.registry.opened import OpenedBackend
from devicekit.registry.probing import probe
from devicekit.registry.request import parse_request, requested_by_environment
from devicekit.registry.selection import select

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_STATS = MemoryStats()
_NO_INFO = MemoryInfo()
_NO_PROPERTIES = DeviceProperties()
_NO_HOST_STATS = HostMemoryStats()


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
        "_set_index": None,
        "_create_stream": None,
        "_create_event": None,
        "_empty_cache": None,
        "_empty_host_cache": None,
        "_collect_ipc": None,
        "_reset_peak": None,
        "_process_memory": None,
        "_memory_snapshot": None,
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
    _set_index: Callable[[], None]
    _create_stream: Callable[[int], Stream]
    _create_event: Callable[[bool], Event]
    _empty_cache: Callable[[], None]
    _empty_host_cache: Callable[[], None]
    _collect_ipc: Callable[[], None]
    _reset_peak: Callable[[], None]
    _process_memory: Callable[[], Sequence[ProcessMemory] | None]
    _memory_snapshot: Callable[[], Sequence[Mapping[str, object]]]
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
        self._compile()
        backend.on_recompile(self._compile)

    def _compile(self) -> None:
        """Bind every hook once; calls then pay for no lookup."""
        backend, index = self.backend, self.index
        self._implemented = backend.implemented
        for slot, hook in _INDEXED_SLOTS.items():
            setattr(self, slot, dispatch.call_on(backend, hook, index))
        for slot, hook in _PLAIN_SLOTS.items():
            setattr(self, slot, dispatch.call(backend, hook))
        observe = dispatch.observe
        self.memory_stats = observe(backend, "memory_stats", (MemoryStats,), _NO_STATS, index)
        self.memory_info = observe(backend, "memory_info", (MemoryInfo,), _NO_INFO, index)
        self.host_memory_stats = observe(backend, "host_memory_stats", (HostMemoryStats,), _NO_HOST_STATS)
        self.properties = observe(backend, "device_properties", (DeviceProperties,), _NO_PROPERTIES, index)
        self.is_capturing = observe(backend, "is_capturing", (bool,), None, index)
        self.copies_overlap = observe(backend, "copies_overlap", (bool,), None, index)

    def __repr__(self) -> str:
        return f"<Device {self.name}:{self.index} of {self.backend.label}>"

    def __reduce__(self) -> tuple[Callable[..., Device], tuple[str]]:
        return get_device, (f"{self.name}:{self.index}",)

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
        self._set_index()
        try:
            yield
        finally:
            device_of(self.backend, previous)._set_index()

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

    # -- Observing --------------------------------------------------------------------------------------------

    def process_memory(self) -> Sequence[ProcessMemory] | None:
        """Who holds memory on this device; ``None`` where the vendor cannot be asked."""
        if "process_memory" not in self._implemented:
            return None
        return self._process_memory()

    def memory_snapshot(self) -> Sequence[Mapping[str, object]] | None:
        """The allocator's segments and blocks in the vendor's own form; ``None`` where there are none."""
        if "memory_snapshot" not in self._implemented:
            return None
        return self._memory_snapshot()

    def classify_error(self, error: BaseException) -> ErrorKind | None:
        """What ``error`` means on this backend; ``None`` if it is none of its errors. Never raises."""
        if dispatch.is_out_of_memory(self.backend, error):
            return ErrorKind.OUT_OF_MEMORY
        function = self.backend.function("classify_error")
        try:
            kind = function(error) if function is not None else None
        except Exception:  # the answer "unknown" is safe; a second exception inside a handler is not
            return None
        return kind if isinstance(kind, ErrorKind) else None

    # -- Processes and tools ----------------------------------------------------------------------------------

    def collective_backend(self) -> str | None:
        """Name to give ``torch.distributed.init_process_group``; ``None`` if the vendor has none."""
        return dispatch.observe(self.backend, "collective_backend", (str,), None)()

    def visible_devices_variable(self) -> str | None:
        """Environment variable that limits the devices a process sees."""
        return dispatch.observe(self.backend, "visible_devices_variable", (str, type(None)), None)()

    def is_bad_fork(self) -> bool | None:
        """Whether this process was forked after its parent initialised the device; ``None`` if unknown."""
        return dispatch.observe(self.backend, "is_bad_fork", (bool,), None)()

    def profiler_activity(self) -> torch.profiler.ProfilerActivity | None:
        """The activity that makes ``torch.profiler`` record this device."""
        kinds = (torch.profiler.ProfilerActivity, type(None))
        return dispatch.observe(self.backend, "profiler_activity", kinds, None)()


_INDEXED_SLOTS = {
    "synchronize": "synchronize",
    "current_stream": "current_stream",
    "create_graph": "create_graph",
    "memory_pool": "memory_pool",
    "manual_seed": "manual_seed",
    "get_rng_state": "get_rng_state",
    "set_rng_state": "set_rng_state",
    "set_memory_fraction": "set_memory_fraction",
    "record_memory_history": "record_memory_history",
    "_set_index": "set_index",
    "_create_stream": "create_stream",
    "_create_event": "create_event",
    "_reset_peak": "reset_peak_memory_stats",
    "_process_memory": "process_memory",
    "_memory_snapshot": "memory_snapshot",
}
_PLAIN_SLOTS = {
    "current_index": "current_index",
    "use_stream": "use_stream",
    "pin_memory": "pin_memory",
    "export_ipc": "export_ipc",
    "import_ipc": "import_ipc",
    "_empty_cache": "empty_cache",
    "_empty_host_cache": "empty_host_cache",
    "_collect_ipc": "collect_ipc",
}

_lock = threading.Lock()
_devices: dict[tuple[int, int], Device] = {}


def get_device(spec: str | torch.device | Device | None = None) -> Device:
    """Open a device.

    Args:
        spec: a backend's name, with or without an index (``"npu"``, ``"npu:1"``); a ``torch.device``; a Device,
            which is returned as it is; or ``None`` for ``DEVICEKIT_BACKEND``, and failing that the best backend
            of this machine. Without an index it is device 0.

    Raises:
        SelectionError, ContractError: no backend could be chosen; see `devicekit.select`.
        InvalidDevice: the backend has no such index.
    """
    if isinstance(spec, Device):
        return spec
    if isinstance(spec, torch.device):
        return device_of(select(_name_for_torch_device(spec)).backend, spec.index or 0)
    text = spec or requested_by_environment()
    if text is None:
        return device_of(select().backend, 0)
    name, index = parse_request(text)
    return device_of(select(name).backend, index or 0)


def device_of(backend: OpenedBackend, index: int) -> Device:
    """The device at ``index`` of an opened backend.

    Raises:
        InvalidDevice: there is no such index.
    """
    key = (id(backend), index)
    with _lock:
        found = _devices.get(key)
    if found is not None:
        return found
    count = probe(backend).device_count
    if not 0 <= index < count:
        listed = "index 0 is the only one" if count == 1 else f"indices 0 to {count - 1} exist"
        message = f"Backend {backend.label} has no device {index}: {listed}."
        if (variable := backend.manifest.visible_devices_variable) is not None:
            message += f" {variable} limits what this process sees."
        raise InvalidDevice(message, backend=backend.name)
    with _lock:
        return _devices.setdefault(key, Device(backend, index))


def _name_for_torch_device(device: torch.device) -> str:
    # One torch type may have several backends (ROCm answers to torch's "cuda"): the first with hardware wins.
    names = [
        candidate.name
        for candidate in discover()
        if candidate.manifest is not None and candidate.manifest.device_type == device.type
    ]
    if not names:
        raise UnknownBackend(
            f"No installed backend serves torch devices of type {device.type!r}. `devicekit list` shows what is "
            "installed.",
            backend=device.type,
        )
    for name in names[:-1]:
        try:
            return select(name).backend.name
        except BackendUnavailable:
            continue
    return names[-1]
