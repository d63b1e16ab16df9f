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
ABSENT: dict[tuple[str, str], set[str]] = {
    ("cuda", "2.7.1"): set(),
    ("cuda", "2.15.0"): set(),
    ("rocm", "2.7.1"): set(),
    ("rocm", "2.15.0"): set(),
    ("xpu", "2.15.0"): _XPU,
    ("xpu", "2.7.1"): {
        *_XPU,
        "is_capturing",
        "create_graph",
        "empty_host_cache",
        "memory_snapshot",
        "set_memory_fraction",
        "memory_pool",
        "record_memory_history",
    },
    ("npu", "2.14.0"): {"process_memory"},
    ("npu", "2.7.1"): {"process_memory", "empty_host_cache", "host_memory_stats"},
    ("musa", "2.7.1"): {"process_memory", "empty_host_cache", "host_memory_stats"},
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
