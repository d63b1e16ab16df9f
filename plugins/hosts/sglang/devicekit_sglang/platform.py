"""The device layer of SGLang, served from a Device; everything else stays SGLang's own for that kind of device."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

import devicekit
from devicekit_sglang.hosts import host_platform

if TYPE_CHECKING:
    from devicekit.contract.records import DeviceProperties

_T = TypeVar("_T")
_OPENED = devicekit.get_device()
_Host: type[SRTPlatform] = host_platform(_OPENED) or SRTPlatform


class DevicekitPlatform(_Host):
    """SGLang's platform for the opened device, with its device layer taken from devicekit.

    On a kind of device that SGLang has no platform for, what SGLang asks beyond the device layer (attention
    backend, KV pools, graph runner) raises its own `NotImplementedError`, as for any platform from outside.
    """

    device_name = _OPENED.name
    device_type = _OPENED.torch_device.type

    if _Host is SRTPlatform:
        _enum = PlatformEnum.OOT

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Bytes of the whole device."""
        total = _device(device_id).memory_info().total
        return _known(total if total is not None else self._properties(device_id).total_memory, "memory_info")

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:
        """The most bytes of live tensors so far."""
        return float(_known(devicekit.device_for(device).memory_stats().peak_allocated, "memory_stats"))

    def is_pin_memory_available(self, device: object = None) -> bool:
        """Whether host memory can be pinned for this device."""
        return _OPENED.supports("pin_memory")

    def get_device(self, device_id: int = 0) -> str:
        """The device as torch writes it."""
        return str(_device(device_id).torch_device)

    def set_device(self, device: torch.device) -> None:
        """Make a device current, for good."""
        devicekit.make_current(device)

    def get_device_name(self, device_id: int = 0) -> str:
        """The vendor's name for it."""
        return _known(self._properties(device_id).name, "device_properties")

    def get_device_uuid(self, device_id: int = 0) -> str:
        """Its unique name."""
        return _known(self._properties(device_id).uuid, "device_properties")

    def empty_cache(self) -> None:
        """Hand unused memory back to the driver."""
        devicekit.current_device().release_cache()

    def synchronize(self) -> None:
        """Wait for all work on the current device."""
        devicekit.current_device().synchronize()

    def get_available_memory(self, device_id: int = 0) -> tuple[int, int]:
        """The driver's free and total bytes."""
        free, total = _device(device_id).memory_info().free_and_total
        return _known(free, "memory_info"), _known(total, "memory_info")

    def get_torch_distributed_backend_str(self) -> str:
        """The name for ``init_process_group``."""
        return _known(_OPENED.collective_backend(), "collective_backend")

    def get_group_coordinator_device(self, local_rank: int) -> torch.device:
        """The device of a rank on this machine."""
        indexed = _OPENED.backend.manifest.indexed
        return _device(local_rank).torch_device if indexed else _OPENED.torch_device

    @classmethod
    def seed_everything(cls, seed: int | None = None) -> None:
        """Seed Python, numpy, torch and the current device."""
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            devicekit.current_device().manual_seed(seed)

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """What makes torch's profiler record this device."""
        return _known(_OPENED.profiler_activity(), "profiler_activity")

    def get_torch_profiler_activity_str(self) -> str:
        """The same, as text."""
        return self.get_torch_profiler_activity().name

    def _properties(self, device_id: int) -> DeviceProperties:
        return _device(device_id).properties()


def _device(index: int) -> devicekit.Device:
    return devicekit.device_for(index) if _OPENED.backend.manifest.indexed else _OPENED


def _known(value: _T | None, hook: str) -> _T:
    """A value, or SGLang's own way to say that there is none."""
    if value is None:
        raise NotImplementedError(f"Backend {_OPENED.backend.label} does not answer {hook}.")
    return value
