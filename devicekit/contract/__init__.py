"""What a vendor implements: hook specs, records, the manifest, versions and errors.

Imports pluggy and packaging only, so that a manifest can be read and an error raised without torch.
"""

from devicekit.contract.capabilities import CAPABILITIES, Capability
from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream, TimingEvent
from devicekit.contract.hooks import HOOKS, BackendSpec, hookimpl
from devicekit.contract.manifest import Manifest
from devicekit.contract.records import (
    AllocatorSetting,
    AllocatorState,
    DeviceProperties,
    ErrorKind,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    ProcessMemory,
    ReleaseResult,
    Telemetry,
)
from devicekit.contract.spec import HookKind, HookSpec
from devicekit.contract.versions import CONTRACT_VERSION

__all__ = [
    "CAPABILITIES",
    "CONTRACT_VERSION",
    "HOOKS",
    "AllocatorSetting",
    "AllocatorState",
    "BackendSpec",
    "Capability",
    "DeviceGraph",
    "DeviceProperties",
    "ErrorKind",
    "Event",
    "HookKind",
    "HookSpec",
    "HostMemoryStats",
    "Manifest",
    "MemoryInfo",
    "MemoryPool",
    "MemoryStats",
    "ProcessMemory",
    "ReleaseResult",
    "Stream",
    "TimingEvent",
    "Telemetry",
    "hookimpl",
]
