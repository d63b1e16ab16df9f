"""The functions of ``torch.accelerator``, by the same names, for any device that devicekit opens.

``import devicekit_accelerator as accelerator`` takes the place of ``torch.accelerator``: the default backend, and
the device that is current in the calling thread.

It works also where torch's own functions assert because a vendor's allocator is not registered with torch. What a
backend lacks raises `UnsupportedHook`, and a figure that nobody counts raises `UnknownFigure`: a number is never
made up.
"""

from __future__ import annotations

from devicekit_accelerator.graphs import Graph
from devicekit_accelerator.memory import (
    UnknownFigure,
    empty_cache,
    empty_host_cache,
    get_memory_info,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
)
from devicekit_accelerator.selection import (
    current_accelerator,
    current_device_idx,
    current_device_index,
    current_stream,
    device_count,
    device_index,
    get_device_capability,
    is_available,
    set_device_idx,
    set_device_index,
    set_stream,
    synchronize,
)

__all__ = [
    "Graph",
    "UnknownFigure",
    "current_accelerator",
    "current_device_idx",
    "current_device_index",
    "current_stream",
    "device_count",
    "device_index",
    "empty_cache",
    "empty_host_cache",
    "get_device_capability",
    "get_memory_info",
    "is_available",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "set_device_idx",
    "set_device_index",
    "set_stream",
    "synchronize",
]
