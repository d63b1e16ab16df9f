"""Intel GPUs as a devicekit backend."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from devicekit.contract import DeviceProperties, MemoryInfo, hookimpl
from devicekit.torchlike import ErrorRules, Quirk, TorchModuleBackend, Vendor, lacks
from devicekit.torchlike.properties import device_properties

NO_FREE_MEMORY = "free-memory-not-told"
_FREE_MEMORY_NOT_TOLD = (
    "doesn't support querying the available free memory",
    "does not have the ext_intel_free_memory aspect",
)

VENDOR = Vendor(
    device_type="xpu",
    collective_backend="xccl",
    visible_devices_variable="ZE_AFFINITY_MASK",
    profiler_activity="XPU",
    graph_class="XPUGraph",
    errors=ErrorRules(
        device_lost="(?:UR|ZE)_RESULT_ERROR_DEVICE_LOST",
        out_of_memory=(
            r"\bXPU out of memory\."
            "|(?:UR|ZE)_RESULT_ERROR_OUT_OF_(?:DEVICE_MEMORY|HOST_MEMORY|RESOURCES)"
        ),
        not_initialised=(
            "Cannot re-initialize XPU in forked subprocess|Torch not compiled with XPU enabled"
            "|No XPU devices are available|(?:UR|ZE)_RESULT_ERROR_UNINITIALIZED"
        ),
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
@lacks("collect_ipc", "export_ipc", "import_ipc", "host_memory_stats", "copies_overlap")
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
            driver=getattr(found, "driver_version", None),
        )

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
        return MemoryInfo(None, int(self.module.get_device_properties(index).total_memory), "runtime")
