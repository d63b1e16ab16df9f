"""NVIDIA GPUs as a devicekit backend, and nothing that only answers to the same name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from devicekit.contract import ProcessMemory, hookimpl
from devicekit.torchlike import Quirk, Vendor, cuda_like_rules
from devicekit.torchlike.cuda_family import COMMON_QUIRKS, INTEGRATED_MEMORY, CudaFamilyBackend
from devicekit_cuda import management

VENDOR = Vendor(
    device_type="cuda",
    collective_backend="nccl",
    visible_devices_variable="CUDA_VISIBLE_DEVICES",
    profiler_activity="CUDA",
    graph_class="CUDAGraph",
    copies_overlap=True,
    stream_handle="cuda_stream",
    torch_allocator=True,
    telemetry={
        "temperature": ("temperature", 1.0),
        "power": ("power_draw", 1e-3),  # milliwatts
        "utilisation": ("utilization", 0.01),  # per cent
        "clock": ("clock_rate", 1e6),  # megahertz
    },
    errors=cuda_like_rules(
        "CUDA",
        out_of_memory=(
            "(?:CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUTENSOR)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
            "|CURAND_STATUS_ALLOCATION_FAILED|CUDNN_STATUS_INTERNAL_ERROR_(?:DEVICE|HOST)_ALLOCATION_FAILED"
            r"|cupy\.cuda\.memory\.OutOfMemoryError|pycuda\._driver\.MemoryError"
        ),
        device_lost="NVMLError_GpuIsLost",
        not_initialised="Found no NVIDIA driver|no CUDA-capable device is detected",
    ),
    quirks=(
        *COMMON_QUIRKS,
        Quirk(
            INTEGRATED_MEMORY,
            "On integrated GPUs the runtime's free memory leaves out page cache that the system would give up; "
            "the system is asked instead.",
            "https://docs.nvidia.com/cuda/cuda-for-tegra-appnote/index.html#estimating-total-allocatable-device-memory",
        ),
        Quirk(
            "probe-without-nvml-poisons-fork",
            "Counting devices asks NVML; where NVML does not answer, torch asks the runtime, and a process that "
            "forks afterwards cannot use the device in the child.",
            "https://docs.pytorch.org/docs/stable/notes/multiprocessing.html#poison-fork-in-multiprocessing",
        ),
    ),
)


class Backend(CudaFamilyBackend):
    """Hooks of NVIDIA GPUs."""

    vendor = VENDOR

    def _is_built(self) -> bool:
        # ROCm, MUSA and others answer to torch.cuda as well; only NVIDIA's build has all three.
        version = torch.version
        return version.cuda is not None and version.hip is None and super()._is_built()

    def _architecture(self, found: object) -> str | None:
        major, minor = getattr(found, "major", None), getattr(found, "minor", None)
        return None if major is None or minor is None else f"{major}.{minor}"

    def _dtypes(self, found: object) -> frozenset[torch.dtype] | None:
        capability = self._capability(found)
        if capability is None:
            return None
        known = {torch.float64, torch.float32, torch.float16, torch.int8}
        known |= {torch.bfloat16} if capability >= (8, 0) else set()
        known |= {torch.float8_e4m3fn, torch.float8_e5m2} if capability >= (8, 9) else set()
        return frozenset(known)

    def _physical(self, index: int) -> tuple[int | None, str | None]:
        return management.place(self.module, index)

    def _ask_driver_version(self, index: int) -> str | None:
        return management.driver_version()

    @hookimpl
    def process_memory(self, index: int) -> Sequence[ProcessMemory] | None:
        return management.processes(self.module, index)
