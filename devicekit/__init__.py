"""devicekit: the device layer under an inference engine.

::

    import devicekit

    device = devicekit.get_device()           # or "npu:1", torch.device(...), or DEVICEKIT_BACKEND
    device.synchronize()
    device.memory_stats().allocated           # int bytes, or None where nobody counts
    print(device.empty_cache().released)      # bytes handed back, or None

Importing this package imports neither torch nor any plugin: names are resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit.contract import CONTRACT_VERSION, HOOKS, Manifest, hookimpl
    from devicekit.contract.errors import DeviceKitError
    from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream, TimingEvent
    from devicekit.contract.records import (
        AllocatorState,
        DeviceProperties,
        ErrorKind,
        HostMemoryStats,
        MemoryInfo,
        MemoryStats,
        ProcessMemory,
        ReleaseResult,
    )
    from devicekit.device import (
        AvailableMemory,
        Device,
        accelerator_available,
        accelerator_count,
        available_memory,
        current_device,
        device_for,
        empty_device_cache,
        get_device,
        make_current,
        on_accelerator,
        use,
    )
    from devicekit.registry import Policy, Selection, discover, register_backend, select, unregister_backend

__version__ = "0.1.0"

__all__ = [
    "CONTRACT_VERSION",
    "HOOKS",
    "AllocatorState",
    "AvailableMemory",
    "Device",
    "DeviceGraph",
    "DeviceKitError",
    "DeviceProperties",
    "ErrorKind",
    "Event",
    "HostMemoryStats",
    "Manifest",
    "MemoryInfo",
    "MemoryPool",
    "MemoryStats",
    "Policy",
    "ProcessMemory",
    "ReleaseResult",
    "Selection",
    "Stream",
    "TimingEvent",
    "accelerator_available",
    "accelerator_count",
    "available_memory",
    "current_device",
    "device_for",
    "discover",
    "empty_device_cache",
    "get_device",
    "hookimpl",
    "make_current",
    "on_accelerator",
    "register_backend",
    "select",
    "unregister_backend",
    "use",
]

_HOMES = {
    "devicekit.contract": ("CONTRACT_VERSION", "HOOKS", "Manifest", "hookimpl"),
    "devicekit.contract.errors": ("DeviceKitError",),
    "devicekit.contract.records": (
        "AllocatorState",
        "DeviceProperties",
        "ErrorKind",
        "HostMemoryStats",
        "MemoryInfo",
        "MemoryStats",
        "ProcessMemory",
        "ReleaseResult",
    ),
    "devicekit.contract.handles": ("DeviceGraph", "Event", "MemoryPool", "Stream", "TimingEvent"),
    "devicekit.device": (
        "AvailableMemory",
        "Device",
        "accelerator_available",
        "accelerator_count",
        "available_memory",
        "current_device",
        "device_for",
        "empty_device_cache",
        "get_device",
        "make_current",
        "on_accelerator",
        "use",
    ),
    "devicekit.registry": (
        "Policy",
        "Selection",
        "discover",
        "register_backend",
        "select",
        "unregister_backend",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if (home := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module 'devicekit' has no attribute {name!r}")
    if home == "devicekit.device":
        from devicekit.registry.torch_import import require_torch

        require_torch()
    found: object = getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
