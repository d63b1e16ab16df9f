"""Vendors' backends over their doubles, and what each version is expected to lack."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from devicekit.contract import Manifest
from devicekit.torchlike import TorchModuleBackend
from tests.doubles.driver import Driver
from tests.doubles.vendors import FLAVOURS, Double

VENDORS = tuple(FLAVOURS)

_IPC = {"export_ipc", "import_ipc", "collect_ipc"}
_XPU = {*_IPC, "process_memory", "host_memory_stats", "copies_overlap"}
# No vendor's module has these; the CUDA family registers host memory by its runtime.
_NONE = {"submit_work"}
_FEW = {*_NONE, "register_host_memory", "unregister_host_memory"}
_XPU |= {*_FEW, "default_stream", "export_event", "import_event", "telemetry"}
_NPU = {
    *_FEW,
    "process_memory",
    "allocator_settings",
    "set_allocator_setting",
    "priority_range",
    "supported_dtypes",
}
ABSENT: dict[tuple[str, str], set[str]] = {
    ("cuda", "2.7.1"): _NONE,
    ("cuda", "2.15.0"): _NONE,
    ("rocm", "2.7.1"): _NONE,
    ("rocm", "2.15.0"): _NONE,
    ("xpu", "2.15.0"): _XPU,
    ("xpu", "2.7.1"): {
        *_XPU,
        "is_capturing",
        "create_graph",
        "graph_pool",
        "can_access_peer",
        "empty_host_cache",
        "memory_snapshot",
        "set_memory_fraction",
        "memory_pool",
        "record_memory_history",
    },
    ("npu", "2.14.0"): _NPU,
    ("npu", "2.7.1"): {*_NPU, "empty_host_cache", "host_memory_stats"},
    ("musa", "2.7.1"): {*_NPU, "telemetry", "empty_host_cache", "host_memory_stats"},
}


def _versions(vendor: str) -> list[str]:
    known = FLAVOURS[vendor](None).surface.versions
    return sorted({known[0], known[-1]}, key=known.index)


CASES = [(vendor, version) for vendor in VENDORS for version in _versions(vendor)]
"""Every vendor on the oldest and the newest version that its manifest admits."""


def serving(hook: str) -> pytest.MarkDecorator:
    """Run a test on the cases that have ``hook``; that the others lack it is asserted elsewhere."""
    cases = [case for case in CASES if hook not in ABSENT[case]]
    return pytest.mark.parametrize("bench", cases, indirect=True, ids="-".join)


@dataclass
class Bench:
    """One backend over one double."""

    name: str
    double: Double
    backend: TorchModuleBackend

    @property
    def driver(self) -> Driver:
        return self.double.driver


Make = Callable[..., Bench]


def manifest_of(vendor: str) -> Manifest:
    module = importlib.import_module(f"devicekit_{vendor}")
    return Manifest.read(Path(str(module.__file__)).parent / "backend.toml")
