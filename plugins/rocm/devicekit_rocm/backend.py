"""AMD GPUs as a devicekit backend, over the ``torch.cuda`` of a ROCm build."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from devicekit.contract import ProcessMemory, hookimpl
from devicekit.torchlike import Quirk, Vendor, cuda_like_rules
from devicekit.torchlike.cuda_family import COMMON_QUIRKS, INTEGRATED_MEMORY, CudaFamilyBackend
from devicekit_rocm import management

VENDOR = Vendor(
    device_type="cuda",
    collective_backend="nccl",  # RCCL, under the name torch gives it
    visible_devices_variable="HIP_VISIBLE_DEVICES",
    profiler_activity="CUDA",
    graph_class="CUDAGraph",
    copies_overlap=True,
    stream_handle="cuda_stream",
    torch_allocator=True,
    telemetry={
        "temperature": ("temperature", 1.0),
        "power": ("power_draw", 1.0),  # watts, unlike CUDA's
        "utilisation": ("utilization", 0.01),  # per cent
        "clock": ("clock_rate", 1e6),  # megahertz
    },
    errors=cuda_like_rules(
        "HIP",
        out_of_memory=(
            "(?:HIPBLAS|CUBLAS|HIPSPARSE|HIPSOLVER)_STATUS_ALLOC_FAILED|HIPFFT_ALLOC_FAILED"
            "|HIPRAND_STATUS_ALLOCATION_FAILED|rocblas_status_memory_error|miopenStatusAllocFailed"
            r"|HSA_STATUS_ERROR_OUT_OF_RESOURCES|cupy\.cuda\.memory\.OutOfMemoryError"
        ),
        # The runtime's last words before it ends the process: whoever started it hears them.
        device_lost=(
            "HSA_STATUS_ERROR_(?:MEMORY_FAULT|MEMORY_APERTURE_VIOLATION|ILLEGAL_INSTRUCTION|EXCEPTION)"
            "|(?:Memory access fault|HW Exception) by GPU node-[0-9]+"
        ),
        # torch's own checks keep CUDA's name in a ROCm build.
        not_initialised=(
            "Found no NVIDIA driver|No CUDA GPUs are available|Torch not compiled with CUDA enabled"
            "|no ROCm-capable device is detected"
        ),
    ),
    quirks=(
        *COMMON_QUIRKS,
        Quirk(
            INTEGRATED_MEMORY,
            "APUs report wrong free memory or fail with 'invalid argument'; the system is asked instead.",
            "https://github.com/pytorch/pytorch/issues/107605",
        ),
        Quirk(
            "expandable-segments-hang",
            "Expandable segments have hung on several releases; nothing here turns them on.",
            "https://github.com/pytorch/pytorch/issues/192259",
        ),
        Quirk(
            "probe-without-amdsmi-poisons-fork",
            "Counting devices asks amdsmi; where it is not installed, torch asks the runtime, and a process that "
            "forks afterwards cannot use the device in the child.",
            "https://docs.pytorch.org/docs/stable/notes/multiprocessing.html#poison-fork-in-multiprocessing",
        ),
    ),
)


class Backend(CudaFamilyBackend):
    """Hooks of AMD GPUs."""

    vendor = VENDOR

    def _is_built(self) -> bool:
        return torch.version.hip is not None and super()._is_built()

    def _architecture(self, found: object) -> str | None:
        # "gfx942:sramecc+:xnack-": the modes after the colon are settings of the driver.
        name: str | None = getattr(found, "gcnArchName", None)
        return None if name is None else name.partition(":")[0]

    def _dtypes(self, found: object) -> frozenset[torch.dtype] | None:
        name = self._architecture(found)
        if name is None:
            return None
        known = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8}
        if name.startswith("gfx94"):  # of its own kind: without negative zero
            known |= {torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
        elif name.startswith(("gfx95", "gfx12")):
            known |= {torch.float8_e4m3fn, torch.float8_e5m2}
        return frozenset(known)

    def _physical(self, index: int) -> tuple[int | None, str | None]:
        return management.place(self.module, index)

    def _ask_driver_version(self, index: int) -> str | None:
        return management.driver_version(self.module, index)

    @hookimpl
    def process_memory(self, index: int) -> Sequence[ProcessMemory] | None:
        return management.processes(self.module, index)
