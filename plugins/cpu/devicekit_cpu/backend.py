"""The host processor as a devicekit backend.

What torch lacks on the host is left out rather than imitated: there are no streams, no caching allocator and no
peaks, so those hooks are absent and a Device says so.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import torch

from devicekit.contract import DeviceProperties, ErrorKind, MemoryInfo, hookimpl
from devicekit.torchlike.errors import ErrorRules, classify
from devicekit_cpu import host_memory, sharing

if TYPE_CHECKING:
    from torch.profiler import ProfilerActivity

# torch raises a plain RuntimeError when the host allocator fails; this is the allocator's own wording.
ERRORS = ErrorRules(
    out_of_memory_types=(torch.OutOfMemoryError, MemoryError),
    out_of_memory="DefaultCPUAllocator: (?:can't allocate|not enough) memory",
)


class Backend:
    """Hooks of the host processor. It is one device, however many sockets it has."""

    @hookimpl
    def is_available(self) -> bool:
        return True

    @hookimpl
    def device_count(self) -> int:
        return 1

    @hookimpl
    def current_index(self) -> int:
        return 0  # torch.cpu.current_device() answers the string "cpu"

    @hookimpl
    def set_index(self, index: int) -> None:
        """There is one device, and it is always current."""

    @hookimpl
    def synchronize(self, index: int) -> None:
        """Work on the host is finished when the call returns."""

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        return DeviceProperties(
            name=host_memory.processor_name(),
            total_memory=host_memory.limits().total,
            architecture=platform.machine() or None,
            compute_units=host_memory.usable_cores(),
            unified_memory=True,
        )

    @hookimpl
    def supported_dtypes(self, index: int) -> frozenset[torch.dtype] | None:
        return frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        limits = host_memory.limits()
        return MemoryInfo(limits.free, limits.total, "os")

    @hookimpl
    def empty_cache(self) -> None:
        host_memory.trim()

    @hookimpl
    def is_capturing(self, index: int) -> bool:
        return False

    @hookimpl
    def copies_overlap(self, index: int) -> bool:
        return False

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return classify(error, ERRORS)

    @hookimpl
    def manual_seed(self, index: int, seed: int) -> None:
        # torch.manual_seed would reseed every other backend's generators as well.
        torch.default_generator.manual_seed(seed)

    @hookimpl
    def get_rng_state(self, index: int) -> torch.Tensor:
        return torch.get_rng_state()

    @hookimpl
    def set_rng_state(self, index: int, state: torch.Tensor) -> None:
        # torch reads a state from where its storage begins: of a view it would take another, or crash.
        torch.set_rng_state(state.clone(memory_format=torch.contiguous_format))

    @hookimpl
    def collective_backend(self) -> str:
        return "gloo"

    @hookimpl
    def visible_devices_variable(self) -> str | None:
        return None

    @hookimpl
    def is_bad_fork(self) -> bool:
        return False

    @hookimpl
    def export_ipc(self, tensor: torch.Tensor) -> sharing.SharedTensor:
        return sharing.export_tensor(tensor)

    @hookimpl
    def import_ipc(self, handle: object) -> torch.Tensor:
        return sharing.import_tensor(handle)

    @hookimpl
    def profiler_activity(self) -> ProfilerActivity | None:
        return torch.profiler.ProfilerActivity.CPU
