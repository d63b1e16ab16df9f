"""What replaces each function, class and attribute of torch's device modules.

A row reads as code: the vendor's signature, and the expression that does the same through a Device, in which
``device`` is the device that was named, or the current one. Names in the expression's calls are the vendor's
parameters; one that the call does not give is left out. The fixer, the report and the page of replacements all
read these rows.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from devicekit.contract.handles import Stream, TimingEvent


@dataclass(frozen=True)
class Replacement:
    """What to write instead of one name of a device module."""

    name: str
    code: str = ""  # an expression; empty where nothing takes its place word for word
    advice: str = ""  # what to do by hand
    changes: str = ""  # what behaves differently afterwards
    certain: bool = True  # the expression means the same wherever the old code ran
    called: bool = True  # a function or class; else the name itself is replaced
    parameters: Mapping[str, str | None] = field(default_factory=dict)  # the vendor's, with defaults as text

    @cached_property
    def expression(self) -> ast.expr:
        """`code`, parsed."""
        return ast.parse(self.code, mode="eval").body

    def given_by(self, call: ast.Call) -> dict[str, ast.expr] | None:
        """A call's arguments by the vendor's parameter names; ``None`` where that cannot be told."""
        names = list(self.parameters)
        if len(call.args) > len(names) or any(isinstance(one, ast.Starred) for one in call.args):
            return None
        given = dict(zip(names, call.args, strict=False))
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg not in self.parameters or keyword.arg in given:
                return None
            given[keyword.arg] = keyword.value
        return given

    @property
    def sentence(self) -> str:
        """What a report says."""
        return self.code or self.advice


def _row(
    signature: str, code: str = "", *, advice: str = "", changes: str = "", certain: bool = True
) -> Replacement:
    parsed = ast.parse(signature, mode="eval").body
    if not isinstance(parsed, ast.Call):
        name = ast.unparse(parsed)
        return Replacement(name, code, advice, changes, certain and bool(code), called=False)
    given: dict[str, str | None] = {one.id: None for one in parsed.args if isinstance(one, ast.Name)}
    given |= {one.arg: ast.unparse(one.value) for one in parsed.keywords if one.arg is not None}
    return Replacement(
        ast.unparse(parsed.func),
        code,
        advice,
        changes,
        certain and bool(code),
        parameters=MappingProxyType(given),
    )


ANY_VENDOR = "true for an accelerator of any vendor; what it guards must be ready for that"
"""What changes where code asked for one vendor."""
ANY_WORD = f"{ANY_VENDOR}; a device with an index counts too, and a word that torch does not know raises"
"""What changes where code compared a device with a word."""

OWN_MOVES = "calls to() instead, which an object of a class of one's own must have"
"""What changes where something is moved."""

_UNKNOWN = "None where nobody counts, and before the first allocation, instead of 0"
_STREAMS = "raises UnsupportedHook on a device without streams; ask device.supports() first"
_KERNELS = (
    "belongs to the engine's own kernels for that vendor: keep it in a module of theirs, and waive it there"
)
_POOLS = "device.memory_pool().use(), a private pool of any vendor's allocator"
_ALLOCATOR = "a custom allocator is the backend plugin's to install"
_DEBUGGING = "a tool of one vendor: keep it in a debugging script, and waive it"
_MANAGEMENT = "device.telemetry(), in which None is unknown"
_HOST_SEED = "seeds the host's generator where there is no accelerator, as torch.manual_seed does"
_HOST_STATS = "device.host_memory_stats()"
_GRAPH = "graph = device.create_graph(pool=...), then: with graph.capture(): ..., and graph.replay()"

_ROWS = (
    # Presence and selection
    _row("is_available()", "devicekit.accelerator_available()",
         changes=ANY_VENDOR),
    _row("device_count()", "devicekit.accelerator_count()",
         changes="accelerators of any vendor are counted"),
    _row("current_device()", "device.index"),
    _row("set_device(device)", "devicekit.make_current(device)"),
    _row("device(device)", "device.current()"),
    _row("device_of(obj)", advice="with devicekit.device_for(tensor).current()"),
    _row("init()", advice="nothing: opening a Device is enough"),
    _row("_lazy_init()", advice="nothing: opening a Device is enough"),
    _row("is_initialized()", advice="device.memory_stats().state, or nothing: reading never initialises"),
    _row("_is_compiled()", advice="devicekit.accelerator_available()"),
    _row("is_compiled()", advice="devicekit.accelerator_available()"),
    _row("_is_in_bad_fork()", "device.is_bad_fork()", certain=False, changes="None where that is unknown"),
    # Properties
    _row("get_device_name(device=None)", "device.properties().name", changes="None where the vendor does not say"),
    _row("get_device_properties(device=None)", "device.properties()", certain=False,
         changes="a record of devicekit's: total_memory, name, compute_units, architecture"),
    _row("get_device_capability(device=None)", "device.properties().capability", certain=False,
         changes="None where a vendor has no such number; one vendor's generations say nothing about another's"),
    _row("get_arch_list()", advice=_KERNELS),
    _row("get_gencode_flags()", advice=_KERNELS),
    _row("get_soc_version()", advice=_KERNELS),
    _row("is_bf16_supported(including_emulation=True)",
         advice="torch.bfloat16 in device.supported_dtypes(), which is None where that is unknown"),
    _row("is_tf32_supported()",
         advice="nothing: torch.set_float32_matmul_precision(...) changes nothing where there is no such mode"),
    _row("has_half", advice="torch.float16 in device.supported_dtypes(), which is None where that is unknown"),
    _row("has_magma", advice="nothing: torch.linalg has what a device has, and raises elsewhere"),
    _row("can_device_access_peer(device, peer_device)", "device.can_access_peer(peer_device)", certain=False,
         changes="None where that is unknown; the peer is an index"),
    # Ordering
    _row("synchronize(device=None)", "device.synchronize()"),
    _row("current_stream(device=None)", "device.current_stream()", changes=_STREAMS),
    _row("default_stream(device=None)", "device.default_stream()", changes=_STREAMS),
    _row("set_stream(stream)", "device.set_current_stream(stream)", changes=_STREAMS),
    _row("stream(stream)", "device.use_stream(stream)", changes=_STREAMS),
    _row("StreamContext(stream)", "device.use_stream(stream)", changes=_STREAMS),
    _row("Stream(device=None, priority=0)", "device.create_stream(priority)", changes=_STREAMS),
    _row("Event(enable_timing=False, blocking=False, interprocess=False, external=False)",
         "device.create_event(timing=enable_timing)", changes=_STREAMS),
    _row("Stream.priority_range()", advice="device.priority_range()"),
    _row("ExternalStream(stream_ptr, device=None)",
         advice="a stream of the vendor's own runtime: keep it in a plugin"),
    _row("get_stream_from_external(data_ptr, device=None)",
         advice="a stream of the vendor's own runtime: keep it in a plugin"),
    _row("_sleep(cycles)", advice="device.create_event(timing=True) to measure; waiting on purpose is for tests"),
    # Graphs
    _row("is_current_stream_capturing()", "device.is_capturing()", changes="None where that is unknown"),
    _row("CUDAGraph()", advice=_GRAPH),
    _row("NPUGraph()", advice=_GRAPH),
    _row("XPUGraph()", advice=_GRAPH),
    _row("MUSAGraph()", advice=_GRAPH),
    _row("graph(cuda_graph, pool=None, stream=None, capture_error_mode='global')", advice=_GRAPH),
    _row("graph_pool_handle()", "device.graph_pool()", certain=False,
         changes="a pool for device.create_graph(pool=...), not for the vendor's own graphs"),
    _row("make_graphed_callables(callables, sample_args)", advice=_GRAPH),
    _row("graphs", advice=_GRAPH),
    # Releasing
    _row("empty_cache()", "device.release_cache()",
         changes="false, and nothing happens, on a backend without a cache; device.empty_cache() also measures"),
    _row("ipc_collect()", "device.collect_ipc()", changes="tells whether something was called"),
    _row("host_empty_cache()", "device.empty_host_cache()", changes="tells what was handed back"),
    _row("empty_virt_addr_cache()", advice="device.empty_cache()"),
    _row("reset_peak_memory_stats(device=None)", "device.reset_peak_memory_stats()"),
    _row("reset_max_memory_allocated(device=None)", "device.reset_peak_memory_stats()"),
    _row("reset_max_memory_cached(device=None)", "device.reset_peak_memory_stats()"),
    _row("reset_accumulated_memory_stats(device=None)",
         advice="the difference of two device.memory_stats(): counters are never set back"),
    # Observing memory
    _row("mem_get_info(device=None)", "device.memory_info().free_and_total",
         changes="None for what the driver does not say"),
    _row("memory_allocated(device=None)", "device.memory_stats().allocated",
         certain=False, changes=_UNKNOWN),
    _row("max_memory_allocated(device=None)", "device.memory_stats().peak_allocated",
         certain=False, changes=_UNKNOWN),
    _row("memory_reserved(device=None)", "device.memory_stats().reserved",
         certain=False, changes=_UNKNOWN),
    _row("memory_cached(device=None)", "device.memory_stats().reserved",
         certain=False, changes=_UNKNOWN),
    _row("max_memory_reserved(device=None)", "device.memory_stats().peak_reserved",
         certain=False, changes=_UNKNOWN),
    _row("max_memory_cached(device=None)", "device.memory_stats().peak_reserved",
         certain=False, changes=_UNKNOWN),
    _row("memory_stats(device=None)", "device.memory_stats().raw",
         changes="the vendor's own keys; the fields of memory_stats() mean the same on every vendor"),
    _row("memory_stats_as_nested_dict(device=None)", advice="device.memory_stats(), a record"),
    _row("memory_summary(device=None, abbreviated=False)", advice="device.memory_stats(), or `devicekit info`"),
    _row("memory_snapshot()", "device.memory_snapshot()", certain=False, changes="None where it cannot be seen"),
    _row("memory_usage(device=None)", advice=_MANAGEMENT),
    _row("device_memory_used(device=None)", advice="total - free of device.memory_info(): every process included"),
    _row("list_gpu_processes(device=None)", advice="device.process_memory(), a record for each process"),
    _row("current_allocated_memory()", "device.memory_stats().allocated",
         certain=False, changes=_UNKNOWN),
    _row("driver_allocated_memory()", "device.memory_stats().reserved",
         certain=False, changes=_UNKNOWN),
    _row("recommended_max_memory()", "device.memory_info().total", certain=False,
         changes="the driver's total, or None"),
    _row("host_memory_stats()", advice=_HOST_STATS),
    _row("host_memory_stats_as_nested_dict()", advice=_HOST_STATS),
    _row("reset_peak_host_memory_stats()", advice=_HOST_STATS),
    _row("reset_accumulated_host_memory_stats()", advice=_HOST_STATS),
    _row("memory", advice="the methods of Device about memory: memory_stats, memory_snapshot, memory_pool"),
    _row("memory._record_memory_history(enabled='all')", advice="device.record_memory_history(True or False)"),
    _row("memory._dump_snapshot(filename)", advice="device.memory_snapshot(), which is yours to write"),
    _row("memory._snapshot(device=None)", advice="device.memory_snapshot()"),
    _row("memory._set_allocator_settings(settings)", advice="device.set_allocator_setting(name, value)"),
    # Limits and pools
    _row("set_per_process_memory_fraction(fraction, device=None)", "device.set_memory_fraction(fraction)",
         changes="raises UnsupportedHook where a share cannot be set"),
    _row("get_per_process_memory_fraction(device=None)", advice="remember what was set: vendors do not all tell"),
    _row("MemPool()", "device.memory_pool()", certain=False, changes="entered by its own use()"),
    _row("MemPoolContext(pool)", advice=_POOLS),
    _row("use_mem_pool(pool, device=None)", "pool.use()", certain=False,
         changes="for a pool of device.memory_pool()"),
    _row("caching_allocator_alloc(size, device=None, stream=None)",
         advice="a uint8 tensor on device.torch_device"),
    _row("caching_allocator_delete(mem_ptr)", advice="the tensor's own lifetime"),
    _row("caching_allocator_enable(value=True)", advice=_ALLOCATOR),
    _row("caching_allocator_disabled()", advice=_ALLOCATOR),
    _row("change_current_allocator(allocator)", advice=_ALLOCATOR),
    _row("get_allocator_backend()", advice=_ALLOCATOR),
    _row("CUDAPluggableAllocator(path, alloc, free)", advice=_ALLOCATOR),
    _row("NPUPluggableAllocator(path, alloc, free)", advice=_ALLOCATOR),
    _row("XPUPluggableAllocator(path, alloc, free)", advice=_ALLOCATOR),
    _row("MUSAPluggableAllocator(path, alloc, free)", advice=_ALLOCATOR),
    # Random
    _row("manual_seed(seed)", "device.manual_seed(seed)", changes=_HOST_SEED),
    _row("manual_seed_all(seed)", "device.manual_seed_all(seed)", changes=_HOST_SEED),
    _row("get_rng_state(device=None)", "device.get_rng_state()"),
    _row("set_rng_state(new_state, device=None)", "device.set_rng_state(new_state)"),
    _row("get_rng_state_all()", advice="device.get_rng_state() for each device"),
    _row("set_rng_state_all(new_states)", advice="device.set_rng_state(state) for each device"),
    _row("seed()", advice="device.manual_seed(torch.seed())"),
    _row("seed_all()", advice="device.manual_seed_all(torch.seed())"),
    _row("initial_seed()", advice="the seed that was given to device.manual_seed"),
    _row("default_generators", advice="device.get_rng_state() and device.set_rng_state()"),
    _row("random", advice="device.manual_seed, get_rng_state and set_rng_state"),
    # Errors
    _row("OutOfMemoryError", "torch.OutOfMemoryError"),
    _row("AcceleratorError", "torch.AcceleratorError"),
    _row("CudaError", advice="device.classify_error(error), which answers what the error means"),
    _row("DeferredCudaCallError", advice="device.classify_error(error), which answers what the error means"),
    _row("check_error(res)", advice="device.classify_error(error), which answers what the error means"),
    _row("cudaStatus", advice="device.classify_error(error), which answers what the error means"),
    # Tools
    _row("nvtx", advice="torch.profiler.record_function(name), which every vendor's profiler shows"),
    _row("profiler", advice="torch.profiler with device.profiler_activity()"),
    _row("cudart()", advice="torch.profiler with device.profiler_activity(); "
         "device.register_host_memory for host memory; else the vendor's own runtime, in a plugin"),
    _row("set_sync_debug_mode(debug_mode)", advice=_DEBUGGING),
    _row("get_sync_debug_mode()", advice=_DEBUGGING),
    _row("utilization(device=None)", advice=_MANAGEMENT),
    _row("temperature(device=None)", advice=_MANAGEMENT),
    _row("power_draw(device=None)", advice=_MANAGEMENT),
    _row("clock_rate(device=None)", advice=_MANAGEMENT),
    _row("current_blas_handle()", advice=_KERNELS),
    _row("current_solver_handle()", advice=_KERNELS),
    _row("jiterator", advice=_KERNELS),
    _row("tunable", advice=_KERNELS),
    _row("gds", advice=_KERNELS),
    _row("sparse", advice=_KERNELS),
    _row("green_contexts", advice=_KERNELS),
    _row("GreenContext", advice=_KERNELS),
    _row("nccl", advice="torch.distributed with device.collective_backend()"),
    _row("comm", advice="torch.distributed with device.collective_backend()"),
    _row("streams", advice="device.create_stream() and device.create_event()"),
    _row("amp", advice="torch.amp, which takes the device's type"),
    _row("amp.autocast(enabled=True, dtype=None, cache_enabled=True)",
         "torch.autocast(device.torch_device.type, enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)",
         certain=False, changes="takes effect on the host too; torch's own default dtype for that device"),
    _row("amp.GradScaler()", advice="torch.amp.GradScaler(device.torch_device.type)"),
)  # fmt: skip

_STORAGE = ("BFloat16", "Bool", "Byte", "Char", "ComplexDouble", "ComplexFloat", "Double", "Float", "Half", "Int",
            "Long", "Short")  # fmt: skip
_TYPES = tuple(
    _row(
        f"{kind}{what}", advice="torch.empty(..., dtype=..., device=device.torch_device), or tensor.to(dtype)"
    )
    for kind in _STORAGE
    for what in ("Tensor", "Storage")
)

REPLACEMENTS: Mapping[str, Replacement] = MappingProxyType({row.name: row for row in (*_ROWS, *_TYPES)})
"""By the name after ``torch.cuda.`` (or another vendor's module)."""

ANNOTATIONS: Mapping[str, str] = MappingProxyType(
    {
        "Stream": "devicekit.Stream",
        "Event": "devicekit.Event",
        "MemPool": "devicekit.MemoryPool",
        **{f"{one}Graph": "devicekit.DeviceGraph" for one in ("CUDA", "NPU", "XPU", "MUSA")},
    }
)
"""What a name is in an annotation."""

STATISTICS: Mapping[str, str] = MappingProxyType(
    {
        "allocated_bytes.all.current": "allocated",
        "active_bytes.all.current": "active",
        "requested_bytes.all.current": "requested",
        "reserved_bytes.all.current": "reserved",
        "inactive_split_bytes.all.current": "inactive_split",
        "segment.all.current": "num_segments",
        "allocated_bytes.all.peak": "peak_allocated",
        "active_bytes.all.peak": "peak_active",
        "reserved_bytes.all.peak": "peak_reserved",
        "num_alloc_retries": "num_alloc_retries",
        "num_ooms": "num_ooms",
    }
)
"""Keys of ``memory_stats()`` and the field of `MemoryStats` that means the same."""

PROPERTIES: Mapping[str, str] = MappingProxyType(
    {"total_memory": "total_memory", "name": "name", "multi_processor_count": "compute_units"}
)
"""Attributes of ``get_device_properties()`` and the field of `DeviceProperties` that means the same."""

NEAR_PROPERTIES: Mapping[str, str] = MappingProxyType(
    {"gcnArchName": "architecture", "uuid": "uuid", "is_integrated": "unified_memory"}
)
"""Those whose field is written otherwise: without the driver's modes, as text, or unknown."""


CONTEXTS = frozenset({"device", "stream", "StreamContext", "use_mem_pool"})
"""What gives a context to be entered."""
_STREAM = frozenset(name for name in dir(Stream) if not name.startswith("_"))
_EVENT = frozenset(name for name in dir(TimingEvent) if not name.startswith("_"))
READ: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        **dict.fromkeys(CONTEXTS, frozenset()),
        **dict.fromkeys(("current_stream", "default_stream", "Stream"), _STREAM),
        "Event": _EVENT,
        "get_device_properties": frozenset(PROPERTIES) | frozenset(NEAR_PROPERTIES),
    }
)
"""What can be read of a thing of devicekit's that a replacement gives, as it could of the vendor's."""


def replacement_of(path: str) -> Replacement | None:
    """The row for a dotted path such as ``torch.cuda.memory.empty_cache``; ``None``: the table has none."""
    if path == "torch.backends.mps.is_available":  # what most code asks instead of torch.mps
        path = "torch.mps.is_available"
    rest = path.split(".")[2:]
    if not rest:
        return None
    # torch.cuda.memory.empty_cache, torch.cuda.streams.Event and the like are the module's own names.
    if rest[0] in ("memory", "streams", "random", "graphs") and len(rest) > 1:
        return REPLACEMENTS.get(".".join(rest[:2])) or REPLACEMENTS.get(rest[1]) or REPLACEMENTS[rest[0]]
    return REPLACEMENTS.get(".".join(rest[:2])) or REPLACEMENTS.get(rest[0])
