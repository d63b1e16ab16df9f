"""Memory of the current accelerator, or of one that is named."""

from __future__ import annotations

from collections import OrderedDict

import torch

import devicekit
from devicekit.contract.errors import DeviceError, UnsupportedHook

Which = torch.device | str | int | None


class UnknownFigure(DeviceError):
    """The backend does not count what was asked for; torch would answer 0."""


def empty_cache() -> None:
    """Hand unused allocator blocks back to the driver. Does nothing where there is no cache."""
    devicekit.current_device().release_cache()


def empty_host_cache() -> None:
    """Hand unused pinned memory back to the operating system. Does nothing where there is no cache."""
    devicekit.current_device().empty_host_cache()


def memory_stats(device_index: Which = None, /) -> OrderedDict[str, int]:
    """The allocator's counters by the vendor's own keys, sorted; only those that are kept."""
    return OrderedDict(sorted(devicekit.device_for(device_index).memory_stats().raw.items()))


def memory_allocated(device_index: Which = None, /) -> int:
    """Bytes of live tensors.

    Raises:
        UnknownFigure: the backend does not count them.
    """
    return _figure(device_index, "allocated")


def max_memory_allocated(device_index: Which = None, /) -> int:
    """The most bytes of live tensors since the last reset.

    Raises:
        UnknownFigure: as `memory_allocated`.
    """
    return _figure(device_index, "peak_allocated")


def memory_reserved(device_index: Which = None, /) -> int:
    """Bytes held from the driver.

    Raises:
        UnknownFigure: as `memory_allocated`.
    """
    return _figure(device_index, "reserved")


def max_memory_reserved(device_index: Which = None, /) -> int:
    """The most bytes held from the driver since the last reset.

    Raises:
        UnknownFigure: as `memory_allocated`.
    """
    return _figure(device_index, "peak_reserved")


def reset_peak_memory_stats(device_index: Which = None, /) -> None:
    """Make every peak equal to its current value.

    Raises:
        UnsupportedHook: the backend has no peaks.
    """
    device = devicekit.device_for(device_index)
    device.require("reset_peak_memory_stats")
    device.reset_peak_memory_stats()


def reset_accumulated_memory_stats(device_index: Which = None, /) -> None:
    """Not offered: the contract has no such hook. Take the difference of two readings.

    Raises:
        UnsupportedHook: always.
    """
    device = devicekit.device_for(device_index)
    raise UnsupportedHook(
        "Counters are never set back: take the difference of two memory_stats().",
        backend=device.name,
        hook="reset_accumulated_memory_stats",
    )


def get_memory_info(device_index: Which = None, /) -> tuple[int, int]:
    """The driver's free and total bytes.

    Raises:
        UnknownFigure: the driver does not say.
    """
    device = devicekit.device_for(device_index)
    free, total = device.memory_info().free_and_total
    if free is None or total is None:
        raise _unknown(device, "memory_info")
    return free, total


def _figure(which: Which, field: str) -> int:
    device = devicekit.device_for(which)
    stats = device.memory_stats()
    found: int | None = getattr(stats, field)
    if found is None and stats.state is devicekit.AllocatorState.UNINITIALISED:
        return 0  # nothing was ever allocated
    if found is None:
        raise _unknown(device, field)
    return found


def _unknown(device: devicekit.Device, what: str) -> UnknownFigure:
    return UnknownFigure(f"Backend {device.backend.label} does not count {what}.", backend=device.name)
