"""Checks whether there is memory for an update before any of it is taken."""

from __future__ import annotations

from devicekit.contract.errors import DeviceKitError
from devicekit.device import Device, available_memory, get_device
from devicekit.torchlike import host


class NoRoom(DeviceKitError):
    """An update needs more memory than there is. Nothing was changed."""


def require_room(device: Device, *, on_host: int = 0, on_device: int = 0, kept: int = 0) -> None:
    """Raise `NoRoom` unless there is memory for new weights, and for the old values beside them.

    What is free is not known on every system; then nothing is refused here.

    Args:
        on_host: bytes of new weights in host memory.
        on_device: bytes of new weights on the device.
        kept: bytes of old values, which are kept in host memory.
    """
    if device.torch_device.type == "cpu" or device.properties().unified_memory:
        _require("memory", on_host + on_device, kept, available_memory(device).bytes)
        return
    if on_device:
        _require(f"memory of {device.torch_device}", on_device, 0, available_memory(device).bytes)
    if on_host + kept:
        _require("host memory", on_host, kept, _free_on_host())


def _require(where: str, new: int, kept: int, free: int | None) -> None:
    if free is None or new + kept <= free:
        return
    parts = [f"{new} for the new weights"] if new else []
    parts += [f"{kept} for the old values that a rollback needs"] if kept else []
    raise NoRoom(
        f"Nothing was changed: the update needs {new + kept} bytes of {where} before it is written "
        f"({' and '.join(parts)}), and {free} are free. Free some"
        + (", or set rollback_bytes of the weight store lower." if kept else ".")
    )


def _free_on_host() -> int | None:
    """With what a container may use, where the backend for the host is there to say so."""
    try:
        return get_device("cpu").memory_info().free
    except DeviceKitError:
        return host.available_memory()
