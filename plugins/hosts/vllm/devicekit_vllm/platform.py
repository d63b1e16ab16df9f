"""The device layer of vLLM, served from a Device; everything else stays vLLM's own for that kind of device."""

from __future__ import annotations

import importlib
from typing import TypeVar

import torch
from vllm.platforms.interface import Platform, PlatformEnum

import devicekit

_T = TypeVar("_T")
_OPENED = devicekit.get_device()
# By the backend's name: rocm and cuda share a type of device.
_HOSTS = {
    "cpu": "cpu:CpuPlatform",
    "cuda": "cuda:CudaPlatform",
    "rocm": "rocm:RocmPlatform",
    "xpu": "xpu:XPUPlatform",
}


def _host_platform() -> type[Platform]:
    place = _HOSTS.get(_OPENED.name)
    if place is None:
        return Platform
    module, _, name = place.partition(":")
    found: type[Platform] = getattr(importlib.import_module(f"vllm.platforms.{module}"), name)
    return found


_Host: type[Platform] = _host_platform()


class DevicekitPlatform(_Host):
    """vLLM's platform for the opened device, with its device layer taken from devicekit.

    How vLLM sizes the cache of its cpu engine is part of that engine and stays vLLM's: on the host's processor
    ``get_device_total_memory`` is vLLM's own.
    """

    device_name = _OPENED.name
    device_type = _OPENED.torch_device.type

    if _Host is Platform:
        _enum = PlatformEnum.OOT

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The vendor's name for it."""
        return _known(_device(device_id).properties().name, "device_properties")

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """Its unique name."""
        return _known(_device(device_id).properties().uuid, "device_properties")

    if not _OPENED.backend.manifest.host:

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            """Bytes of the whole device."""
            return _known(_device(device_id).memory_info().total, "memory_info")

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Make a device current, for good."""
        devicekit.make_current(device)

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Seed the host and every device that this process can see."""
        torch.manual_seed(seed)
        for index in range(_OPENED.backend.device_count or 1):
            _device(index).manual_seed(seed)

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Whether host memory can be pinned for this device."""
        return _OPENED.supports("pin_memory")

    @classmethod
    def get_current_memory_usage(cls, device: torch.types.Device | None = None) -> float:
        """The most bytes of live tensors so far."""
        return float(_known(devicekit.device_for(device).memory_stats().peak_allocated, "memory_stats"))

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """Multiprocessors, or what this vendor calls them."""
        return _known(_device(device_id).properties().compute_units, "device_properties")

    @classmethod
    def empty_cache(cls) -> None:
        """Hand unused memory back to the driver."""
        devicekit.current_device().release_cache()

    @classmethod
    def synchronize(cls) -> None:
        """Wait for all work on the current device."""
        devicekit.current_device().synchronize()

    @classmethod
    def mem_get_info(cls, device: torch.types.Device | None = None) -> tuple[int, int]:
        """The driver's free and total bytes."""
        free, total = devicekit.device_for(device).memory_info().free_and_total
        return _known(free, "memory_info"), _known(total, "memory_info")


def _device(index: int) -> devicekit.Device:
    return devicekit.get_device(f"{_OPENED.name}:{index}") if _OPENED.backend.manifest.indexed else _OPENED


def _known(value: _T | None, hook: str) -> _T:
    """A value, or vLLM's own way to say that there is none."""
    if value is None:
        raise NotImplementedError(f"Backend {_OPENED.backend.label} does not answer {hook}.")
    return value
