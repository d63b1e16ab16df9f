"""Who holds memory on an AMD GPU, as its management library says."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

from devicekit.contract import ProcessMemory


def on_device(module: ModuleType, index: int) -> Sequence[ProcessMemory] | None:
    """The processes on torch's device ``index``; ``None`` where the library is missing or does not answer."""
    try:
        amdsmi = importlib.import_module("amdsmi")
    except (ImportError, KeyError, OSError):  # it loads its C library, by a variable or a path, when imported
        return None
    try:
        amdsmi.amdsmi_init()
        # The library counts every device of the machine, torch only the visible ones.
        handle = amdsmi.amdsmi_get_processor_handles()[module._get_amdsmi_device_index(index)]
        found = amdsmi.amdsmi_get_gpu_process_list(handle)
    except amdsmi.AmdSmiException:  # no driver, or processes of other users
        return None
    # Bytes here, unlike in the library's other memory calls.
    return [ProcessMemory(int(one["pid"]), one["memory_usage"]["vram_mem"]) for one in found]
