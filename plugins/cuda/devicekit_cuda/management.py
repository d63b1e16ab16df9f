"""What NVIDIA's management library says: who holds memory on a GPU, and the version of the driver."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from devicekit.contract import ProcessMemory
from devicekit.torchlike.numbers import whole


def processes(module: ModuleType, index: int) -> Sequence[ProcessMemory] | None:
    """The processes on torch's device ``index``; ``None`` where the library is missing or does not answer.

    A process whose memory the library may not tell (MIG, WSL, a container's walls) has ``used=None``.
    """
    nvml = _library()
    if nvml is None:
        return None
    try:
        # NVML counts every device of the machine, torch only the visible ones.
        handle = nvml.nvmlDeviceGetHandleByIndex(module._get_nvml_device_index(index))
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return [ProcessMemory(int(one.pid), whole(one.usedGpuMemory)) for one in running]
    except Exception:  # no permission, or CUDA_VISIBLE_DEVICES names what torch cannot count: a MIG partition
        return None


def place(module: ModuleType, index: int) -> tuple[int | None, str | None]:
    """Of torch's device ``index``: its index among all of the machine, and its PCI address."""
    try:
        physical = whole(module._get_nvml_device_index(index))
    except Exception:  # CUDA_VISIBLE_DEVICES names what torch cannot count
        return None, None
    nvml = None if physical is None else _library()
    if nvml is None:
        return physical, None
    try:
        found = nvml.nvmlDeviceGetPciInfo(nvml.nvmlDeviceGetHandleByIndex(physical)).busId
        return physical, found.decode() if isinstance(found, bytes) else str(found)
    except Exception:
        return physical, None


def driver_version() -> str | None:
    """The driver's version; ``None`` where the library is missing or does not answer: torch does not know."""
    nvml = _library()
    if nvml is None:
        return None
    try:
        found: str | bytes = nvml.nvmlSystemGetDriverVersion()
        return found.decode() if isinstance(found, bytes) else found  # bytes in older releases of the library
    except Exception:
        return None


def _library() -> ModuleType | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed; or no driver, which is not a RuntimeError
        return None
    return nvml
