"""What an engine does with a device, run over a backend that may lack hooks or lie.

Each function yields what went wrong in words, or nothing. Refusing with one of devicekit's own errors, or with
the backend's own out-of-memory error, is never wrong; losing data, raising something else or hanging is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit.device import Device

_PATTERN = 37


def faults_over(device: Device) -> list[str]:
    """Everything that went wrong while an engine's work ran over ``device``."""
    return [f"{name}: {said}" for name, check in _CHECKS for said in _guarded(check, device)]


def _guarded(check: Callable[[Device], Iterator[str]], device: Device) -> list[str]:
    import torch

    from devicekit.contract.errors import DeviceKitError

    found: list[str] = []
    try:
        found.extend(check(device))
    except (DeviceKitError, torch.OutOfMemoryError):
        return found
    except Exception as error:
        found.append(f"raised {type(error).__name__}: {error}")
    return found


def _memory_question(device: Device) -> Iterator[str]:
    """How much memory is left: exact bytes or None, whatever the backend says."""
    from devicekit.available import available_memory, empty_device_cache

    found = available_memory(device)
    for name in ("driver_free", "reusable"):
        value = getattr(found, name)
        if value is not None and type(value) is not int:
            yield f"{name} is {value!r}"
    if not device.supports("memory_info") and found.bytes is not None:
        yield f"nobody was asked, and {found.bytes} bytes are said to be available"
    released = empty_device_cache(device)
    if released is not device.supports("empty_cache"):
        yield f"empty_device_cache() returned {released!r}"


def _live_data(device: Device) -> Iterator[str]:
    """A tensor that is live while everything is released holds its data."""
    import torch

    block = torch.full((1 << 16,), _PATTERN, dtype=torch.uint8, device=device.torch_device)
    for release in (device.empty_cache, device.empty_host_cache, device.collect_ipc):
        result = release()
        if result.called is False and result.reason is None:
            yield "a release did nothing and gave no reason"
    if not bool((block == _PATTERN).all().item()):
        yield "live data was lost"


_CHECKS: tuple[tuple[str, Callable[[Device], Iterator[str]]], ...] = (
    ("asking what is left", _memory_question),
    ("releasing with live data", _live_data),
)
