"""Intel GPUs as a devicekit backend."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from devicekit.contract import DeviceProperties, ErrorKind, MemoryInfo, hookimpl
from devicekit.torchlike import ErrorRules, Quirk, TorchModuleBackend, Vendor, lacks
from devicekit.torchlike.numbers import whole
from devicekit.torchlike.properties import device_properties, text

NO_FREE_MEMORY = "free-memory-not-told"
_FREE_MEMORY_NOT_TOLD = (
    "doesn't support querying the available free memory",
    "does not have the ext_intel_free_memory aspect",
)

# The Unified Runtime, Level Zero, and the Plugin Interface before them.
_RESULT = r"\b(?:(?:UR|ZE)_RESULT|PI)_ERROR_"
_ZE_CODES = {
    ErrorKind.DEVICE_LOST: (0x70000001, 0x70000006),  # lost, requires a reset
    ErrorKind.OUT_OF_MEMORY: (0x70000002, 0x70000003),  # of the host, of the device
    ErrorKind.NOT_INITIALISED: (0x78000001,),
}


def _ze_code(kind: ErrorKind) -> str:
    """Level Zero's code alone, as some libraries give it: hexadecimal, or decimal as older ones did."""
    codes = "|".join(f"0x{code:08x}|{code}" for code in _ZE_CODES[kind])
    heading = r"\bTriton Error \[ZE\]: |\b(?:ze|zello?|level[ _-]zero)\w* (?:error|failed)[^\n]{0,100}?[ :=(]"
    return rf"(?i:(?:{heading})(?:{codes})\b)"


VENDOR = Vendor(
    device_type="xpu",
    collective_backend="xccl",
    visible_devices_variable="ZE_AFFINITY_MASK",
    profiler_activity="XPU",
    graph_class="XPUGraph",
    stream_handle="sycl_queue",
    torch_allocator=True,
    errors=ErrorRules(
        device_lost=_ze_code(ErrorKind.DEVICE_LOST),
        out_of_memory=rf"\bXPU out of memory\.|{_ze_code(ErrorKind.OUT_OF_MEMORY)}",
        not_initialised=(
            "Cannot re-initialize XPU in forked subprocess|Torch not compiled with XPU enabled"
            rf"|No XPU devices are available|{_ze_code(ErrorKind.NOT_INITIALISED)}"
        ),
        names={
            ErrorKind.DEVICE_LOST: rf"{_RESULT}(?:DEVICE_LOST|DEVICE_REQUIRES_RESET|UNKNOWN_DEVICE_LOST)\b",
            ErrorKind.OUT_OF_MEMORY: (
                rf"{_RESULT}(?:OUT_OF_(?:DEVICE_MEMORY|HOST_MEMORY|RESOURCES)|MEM_OBJECT_ALLOCATION_FAILURE)\b"
                r"|\bCL_(?:MEM_OBJECT_ALLOCATION_FAILURE|OUT_OF_(?:RESOURCES|HOST_MEMORY))\b"
            ),
            ErrorKind.NOT_INITIALISED: rf"{_RESULT}UNINITIALIZED\b",
            ErrorKind.WRONG_DEVICE: rf"{_RESULT}INVALID_DEVICE\b",
        },
    ),
    quirks=(
        Quirk(
            NO_FREE_MEMORY,
            "Integrated GPUs, and some under WSL, refuse to say how much memory is free; free is then unknown "
            "and total is still reported.",
            "https://github.com/pytorch/pytorch/issues/164429",
        ),
        Quirk(
            "device-lost-after-out-of-memory",
            "Running out of memory may lose the device; such an error is never called out of memory.",
            "https://github.com/intel/torch-xpu-ops/issues/3155",
        ),
        Quirk(
            "empty-cache-keeps-memory-with-xccl",
            "After collectives, memory handed back may not show as free.",
            "https://github.com/intel/torch-xpu-ops/issues/3744",
        ),
        Quirk(
            "free-memory-may-not-move",
            "The driver's free memory has been seen unchanged after large allocations.",
            "https://github.com/pytorch/pytorch/issues/161381",
        ),
        Quirk(
            "reuse-after-empty-cache-may-be-wrong",
            "On Windows, memory reused after emptying the cache has produced NaN.",
            "https://github.com/pytorch/pytorch/issues/197520",
            ">=2.14,<2.15",
        ),
        Quirk(
            "synchronize-own-queues-only",
            "Synchronising waits for torch's own queues, not for those of other libraries.",
            "https://docs.pytorch.org/docs/stable/xpu.html",
        ),
    ),
)


# torch shares no tensors of this device between processes and counts no pinned memory; that copies overlap has
# not been established.
@lacks("collect_ipc", "export_ipc", "import_ipc", "export_event", "import_event", "host_memory_stats")
@lacks("copies_overlap", "default_stream", "telemetry")
class Backend(TorchModuleBackend):
    """Hooks of Intel GPUs."""

    vendor = VENDOR

    def __init__(self, *, without_quirks: Collection[str] = ()) -> None:
        super().__init__(without_quirks=without_quirks)
        self._free_not_told: set[int] = set()

    def _find_empty_host_cache(self) -> Callable[[], object] | None:
        return getattr(torch.accelerator, "empty_host_cache", None)

    def _architecture(self, found: object) -> str | None:
        code = getattr(found, "architecture", None)
        return hex(code) if isinstance(code, int) else None

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        found = self.module.get_device_properties(index)
        return device_properties(
            found,
            architecture=self._architecture(found),
            compute_units="max_compute_units",
            unified="is_integrated_gpu",
            driver=text(getattr(found, "driver_version", None)),
            **self._place(found, index),
        )

    def _dtypes(self, found: object) -> frozenset[torch.dtype] | None:
        known = {torch.float32}
        for field, dtype in (
            ("has_fp64", torch.float64),
            ("has_fp16", torch.float16),
            ("has_bfloat16_conversions", torch.bfloat16),
        ):
            known |= {dtype} if getattr(found, field, False) else set()
        return frozenset(known)

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        if index not in self._free_not_told:
            try:
                return super().memory_info(index)
            except RuntimeError as error:
                # No property of the device tells beforehand; the device never changes its mind.
                told = not any(words in str(error) for words in _FREE_MEMORY_NOT_TOLD)
                if told or not self._has_quirk(NO_FREE_MEMORY):
                    raise
                self._free_not_told.add(index)
        asked = getattr(self.module, "get_device_properties", None)
        return MemoryInfo(None, None if asked is None else whole(asked(index).total_memory), "runtime")
