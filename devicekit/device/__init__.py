"""The one handle that engine code holds: a device, how it is opened, and what memory it can still give.

`get_device` chooses a backend by the registry and answers with its `Device`; there is one per index and process.
`devicekit.device.generic` serves a torch device that has no plugin.
"""

from devicekit.device.available import AvailableMemory, available_memory, empty_device_cache
from devicekit.device.current import (
    accelerator_available,
    accelerator_count,
    current_device,
    device_for,
    make_current,
    on_accelerator,
)
from devicekit.device.handle import Device
from devicekit.device.opening import device_of, get_device, use

__all__ = [
    "AvailableMemory",
    "Device",
    "accelerator_available",
    "accelerator_count",
    "available_memory",
    "current_device",
    "device_for",
    "device_of",
    "empty_device_cache",
    "get_device",
    "make_current",
    "on_accelerator",
    "use",
]
