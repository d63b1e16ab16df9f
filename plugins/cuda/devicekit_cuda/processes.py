"""Who holds memory on an NVIDIA GPU, as its management library says."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from devicekit.contract import ProcessMemory


def on_device(module: ModuleType, index: int) -> Sequence[ProcessMemory] | None:
    """The processes on torch's device ``index``; ``None`` where the library is missing or does not answer.

    A process whose memory the library may not tell (MIG, WSL, a container's walls) has ``used=None``.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        # NVML counts every device of the machine, torch only the visible ones.
        handle = nvml.nvmlDeviceGetHandleByIndex(module._get_nvml_device_index(index))
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:  # no driver, no permission; it is not a RuntimeError
        return None
    return [ProcessMemory(int(one.pid), one.usedGpuMemory) for one in running]
