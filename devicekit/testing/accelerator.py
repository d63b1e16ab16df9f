"""``torch.accelerator`` on the simulated accelerator.

Those functions are thin Python over C++ that knows only allocators written in C++: there they fail an internal
assertion, do nothing, or end the process. Here each of them is pointed at the machine in use. What stays inert,
since it never passes through Python: ``torch.Stream``, ``torch.Event``, ``current_stream`` and ``set_stream`` of
``torch.accelerator``. Use those of ``torch.sim``.
"""

from __future__ import annotations

import torch

from devicekit.testing import active

__all__ = ["route"]


def route() -> None:
    """Answer ``torch.accelerator``'s calls from the machine in use."""
    for name, function in _FUNCTIONS.items():
        if hasattr(torch._C, name):
            setattr(torch._C, name, function)


def _is_allocator_initialized() -> bool:
    return active.simulator().initialized


def _empty_cache() -> None:
    active.simulator().empty_cache()


def _empty_host_cache() -> None:
    active.simulator().pinned.empty()


def _stats(index: int) -> dict[str, int]:
    return active.simulator().device(index).allocator.stats()


def _reset_peaks(index: int) -> None:
    active.simulator().device(index).allocator.counters.reset_peaks()


def _reset_accumulated(index: int) -> None:
    active.simulator().device(index).allocator.counters.reset_accumulated()


def _memory_info(index: int) -> tuple[int, int]:
    machine = active.simulator()
    machine.initialize()
    memory = machine.device(index).memory
    return memory.counted, memory.total


def _synchronize(index: int) -> None:
    active.simulator().synchronize(index)


def _device_index() -> int:
    return active.simulator().index_of()


def _exchange_device(index: int) -> int:
    before = _device_index()
    _maybe_exchange_device(index)
    return before


def _maybe_exchange_device(index: int) -> None:
    # A negative index is torch's word for "change nothing".
    if index >= 0:
        active.simulator().set_device(index)


_FUNCTIONS = {
    "_accelerator_isAllocatorInitialized": _is_allocator_initialized,
    "_accelerator_emptyCache": _empty_cache,
    "_accelerator_emptyHostCache": _empty_host_cache,
    "_accelerator_getDeviceStats": _stats,
    "_accelerator_resetPeakStats": _reset_peaks,
    "_accelerator_resetAccumulatedStats": _reset_accumulated,
    "_accelerator_getMemoryInfo": _memory_info,
    "_accelerator_synchronizeDevice": _synchronize,
    "_accelerator_getDeviceIndex": _device_index,
    "_accelerator_setDeviceIndex": _maybe_exchange_device,
    "_accelerator_exchangeDevice": _exchange_device,
    "_accelerator_maybeExchangeDevice": _maybe_exchange_device,
}
