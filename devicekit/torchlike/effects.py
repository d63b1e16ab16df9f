"""Shows by effect what a device without a plugin can do: tries it once, on little memory, and looks.

Functions that exist prove nothing: a vendor's ``empty_cache`` may be there and its allocator keep nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from devicekit.torchlike.backend import TorchModuleBackend

_BYTES = 1 << 20


def shown_by_effect(backend: TorchModuleBackend, capability: str) -> bool:
    """Whether device 0 does what the capability says; True for a capability that is not tried here.

    Where no device is there, nothing is shown. May initialise the device.
    """
    look = _LOOKS.get(capability)
    if look is None:
        return True
    try:
        return bool(backend.is_available()) and look(backend)
    except Exception:  # whatever fails here would fail an engine
        return False


def pins(device_type: str) -> bool:
    """Whether torch page-locks host memory for the device."""
    try:
        current = torch.accelerator.current_accelerator()
        if current is None or current.type != device_type:
            return False
        return bool(torch.empty(1).pin_memory().is_pinned())
    except Exception:  # "Need to provide pin_memory allocator to use pin memory"
        return False


def _tensor(backend: TorchModuleBackend) -> torch.Tensor:
    return torch.ones(_BYTES, dtype=torch.uint8, device=backend.vendor.device_type)


def _caches(backend: TorchModuleBackend) -> bool:
    held = _tensor(backend)
    backend.synchronize(0)
    del held
    kept = backend.memory_stats(0)
    if kept.reserved is None or kept.allocated is None or kept.reserved - kept.allocated < _BYTES:
        return False
    backend.empty_cache()
    left = backend.memory_stats(0).reserved
    return left is not None and left < kept.reserved


def _knows_memory(backend: TorchModuleBackend) -> bool:
    info = backend.memory_info(0)
    return info.free is not None and info.total is not None and 0 <= info.free <= info.total


def _has_streams(backend: TorchModuleBackend) -> bool:
    before, side = backend.current_stream(0), backend.create_stream(0, 0)
    with backend.use_stream(side):
        inside = backend.current_stream(0)
    return before != side and inside == side and backend.current_stream(0) == before


def _has_events(backend: TorchModuleBackend) -> bool:
    event = backend.create_event(0, False)
    _tensor(backend)
    event.record()
    event.synchronize()
    return event.query() is True


def _restores_random_state(backend: TorchModuleBackend) -> bool:
    before = backend.get_rng_state(0)
    first = torch.rand(8, device=backend.vendor.device_type).cpu()
    backend.set_rng_state(0, before)
    again = torch.rand(8, device=backend.vendor.device_type).cpu()
    backend.set_rng_state(0, before)
    return bool(torch.equal(first, again))


_LOOKS: Mapping[str, Callable[[TorchModuleBackend], bool]] = {
    "caching_allocator": _caches,
    "driver_memory": _knows_memory,
    "streams": _has_streams,
    "events": _has_events,
    "rng_state": _restores_random_state,
}
