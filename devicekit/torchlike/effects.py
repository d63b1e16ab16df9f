"""Shows by effect what a device without a plugin can do: tries it once, on little memory, and looks.

That a function exists proves nothing: a vendor may have an ``empty_cache`` and an allocator that keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch

from devicekit.contract import CAPABILITIES, ErrorKind
from devicekit.torchlike.backend import TorchModuleBackend

_BYTES = 1 << 20
# An allocator may keep small ones for good, and give large ones back.
_BLOCKS = (_BYTES, 64 * _BYTES, 256 * _BYTES)


def shown_by_effect(backend: TorchModuleBackend, capability: str) -> bool:
    """Whether device 0 does what the capability says. May initialise the device.

    Nothing is shown where no device is there, nor of a capability for which there is nothing to try here.
    """
    look = _LOOKS.get(capability)
    if look is None or any(getattr(backend, hook, None) is None for hook in CAPABILITIES[capability].hooks):
        return False
    try:
        return bool(backend.is_available()) and look(backend)
    except Exception:  # whatever fails here would fail an engine
        return False


def shown_to_be_there(backend: TorchModuleBackend) -> bool:
    """Whether a tensor can be made on device 0. Initialises it."""
    try:
        return bool(backend.is_available()) and _tensor(backend).numel() > 0
    except Exception:  # hardware that is not there, or does not work
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


def inert_hooks(backend: TorchModuleBackend, shown: Collection[str]) -> frozenset[str]:
    """Hooks whose functions exist and do not do what they should, on a device that is there.

    Args:
        shown: the capabilities that it was seen to have.
    """
    tried = {name: hooks for name, hooks in _SERVED_BY.items() if name not in shown}
    found = {hook for hooks in tried.values() for hook in hooks if getattr(backend, hook, None) is not None}
    if backend.manual_seed is not None and not _seeds(backend):
        found.add("manual_seed")
    return frozenset(found)


def _seeds(backend: TorchModuleBackend) -> bool:
    try:
        draws = []
        for seed in (3, 3, 4):
            backend.manual_seed(0, seed)
            draws.append(torch.rand(8, device=backend.vendor.device_type).cpu())
        return torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    except Exception:  # as it would for an engine
        return False


def _tensor(backend: TorchModuleBackend, size: int = _BYTES) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8, device=backend.vendor.device_type)


def _caches(backend: TorchModuleBackend) -> bool:
    return any(_keeps_until_emptied(backend, size) for size in _BLOCKS)


def _keeps_until_emptied(backend: TorchModuleBackend, size: int) -> bool:
    held = _tensor(backend, size)
    backend.synchronize(0)
    del held
    kept = backend.memory_stats(0)
    if kept.reserved is None or kept.allocated is None or kept.reserved - kept.allocated < size:
        return False
    backend.empty_cache()
    left = backend.memory_stats(0).reserved
    return left is not None and left < kept.reserved


def _tracks_peaks(backend: TorchModuleBackend) -> bool:
    held = _tensor(backend)
    del held
    backend.synchronize(0)
    stats = backend.memory_stats(0)
    if stats.peak_allocated is None or stats.allocated is None or stats.peak_allocated <= stats.allocated:
        return False
    backend.reset_peak_memory_stats(0)
    after = backend.memory_stats(0)
    return after.peak_allocated == after.allocated


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


def _replays(backend: TorchModuleBackend, pool: object | None = None) -> bool:
    source, graph = _tensor(backend), backend.create_graph(0, pool)
    target = torch.zeros_like(source)
    backend.synchronize(0)
    with graph.capture():
        captures = backend.is_capturing(0)
        target.copy_(source + 1)
    source.fill_(3)
    graph.replay()
    backend.synchronize(0)
    return captures and not backend.is_capturing(0) and bool((target.cpu() == 4).all())


def _shares_pools(backend: TorchModuleBackend) -> bool:
    pool = backend.graph_pool(0)
    return _replays(backend, pool) and _replays(backend, pool)


def _has_pools(backend: TorchModuleBackend) -> bool:
    with backend.memory_pool(0).use():
        held = _tensor(backend)
    backend.synchronize(0)
    return bool((held.cpu() == 1).all())


def _pins(backend: TorchModuleBackend) -> bool:
    plain = torch.ones(8)
    return backend.pin_memory(plain).is_pinned() and not plain.is_pinned()


def _limits(backend: TorchModuleBackend) -> bool:
    backend.set_memory_fraction(0, 0.0)
    try:
        # Of what the allocator keeps it may still give.
        torch.empty(64 * _BYTES, dtype=torch.uint8, device=backend.vendor.device_type)
    except Exception as error:
        return backend.classify_error(error) is ErrorKind.OUT_OF_MEMORY
    finally:
        backend.set_memory_fraction(0, 1.0)
    return False


# Hooks that are of no use where the capability was not seen.
_SERVED_BY: Mapping[str, tuple[str, ...]] = {
    "streams": ("create_stream", "use_stream", "set_current_stream", "priority_range"),
    "events": ("create_event", "export_event", "import_event"),
    "rng_state": ("get_rng_state", "set_rng_state"),
    "graphs": ("create_graph", "graph_pool"),
    "memory_pools": ("memory_pool",),
}
_LOOKS: Mapping[str, Callable[[TorchModuleBackend], bool]] = {
    "caching_allocator": _caches,
    "peak_memory": _tracks_peaks,
    "driver_memory": _knows_memory,
    "streams": _has_streams,
    "events": _has_events,
    "rng_state": _restores_random_state,
    "graphs": _replays,
    "shared_graph_pools": _shares_pools,
    "memory_pools": _has_pools,
    "pinned_memory": _pins,
    "memory_fraction": _limits,
}
