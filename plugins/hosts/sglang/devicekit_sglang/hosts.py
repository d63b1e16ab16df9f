"""SGLang's own platform for a kind of device."""

from __future__ import annotations

import importlib

from sglang.srt.platforms.interface import SRTPlatform

from devicekit import Device

# By the backend's name: rocm and cuda share a type of device.
_HOSTS = {
    "cpu": "cpu:CpuSRTPlatform",
    "cuda": "cuda:CudaSRTPlatform",
    "rocm": "rocm:RocmSRTPlatform",
    "xpu": "xpu:XpuSRTPlatform",
    "npu": "npu:NPUSRTPlatform",
    "musa": "musa:MusaSRTPlatform",
}


def host_platform(device: Device) -> type[SRTPlatform] | None:
    """The class, or ``None`` where SGLang has none for this device."""
    place = _HOSTS.get(device.name)
    if place is None:
        return None
    module, _, name = place.partition(":")
    found: type[SRTPlatform] = getattr(importlib.import_module(f"sglang.srt.platforms.{module}"), name)
    return found
