"""What AMD's management library says: who holds memory on a GPU, and the version of its driver."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeVar

from devicekit.contract import ProcessMemory
from devicekit.torchlike.numbers import whole

_T = TypeVar("_T")
_NOT_TOLD = "N/A"


def processes(module: ModuleType, index: int) -> Sequence[ProcessMemory] | None:
    """The processes on torch's device ``index``; ``None`` where the library is missing or does not answer."""
    # Bytes here, unlike in the library's other memory calls.
    return _ask(
        module,
        index,
        lambda amdsmi, handle: [
            ProcessMemory(int(one["pid"]), whole(one["memory_usage"]["vram_mem"]))
            for one in amdsmi.amdsmi_get_gpu_process_list(handle)
        ],
    )


def place(module: ModuleType, index: int) -> tuple[int | None, str | None]:
    """Of torch's device ``index``: its index among all of the machine, and its PCI address."""
    try:
        physical = whole(module._get_amdsmi_device_index(index))
    except Exception:  # a variable names what torch cannot count
        return None, None
    found = _ask(module, index, lambda amdsmi, handle: amdsmi.amdsmi_get_gpu_device_bdf(handle))
    return physical, found if isinstance(found, str) else None


def driver_version(module: ModuleType, index: int) -> str | None:
    """The version of the driver of torch's device ``index``; ``None`` where nobody says: torch does not know."""
    found = _ask(
        module, index, lambda amdsmi, handle: amdsmi.amdsmi_get_gpu_driver_info(handle)["driver_version"]
    )
    return None if found in (None, "", _NOT_TOLD) else str(found)


def _ask(module: ModuleType, index: int, question: Callable[[ModuleType, object], _T]) -> _T | None:
    try:
        amdsmi = importlib.import_module("amdsmi")  # it loads its C library, by a variable or a path
        amdsmi.amdsmi_init()
        # The library counts every device of the machine, torch only the visible ones.
        handle = amdsmi.amdsmi_get_processor_handles()[module._get_amdsmi_device_index(index)]
        return question(amdsmi, handle)
    # No library, no driver, processes of other users, or a variable that names what torch cannot count.
    except Exception:
        return None
