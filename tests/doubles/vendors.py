"""In which respects vendors' modules differ, and how to put a vendor's double in torch's place for a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import torch
from packaging.utils import canonicalize_name

from tests.doubles.driver import COUNTERS, GIB, Card, Driver
from tests.doubles.handles import classes
from tests.doubles.module import DeviceModule
from tests.doubles.surface import Surface, strict_module


@dataclass
class Flavour:
    """One vendor in one version."""

    name: str
    surface: Surface
    label: str  # in its messages
    graph_class: str
    properties: dict[str, object]
    torch_version: dict[str, object] = field(default_factory=dict)  # torch.version.*
    package: str | None = None  # the vendor's own distribution
    padding: int = 0
    keys: Callable[[str], bool] = lambda key: True  # which statistics it keeps
    oom_is_typed: bool = True
    reads_priorities: bool = False
    compiled: bool = True
    no_hardware_text: str = ""
    hidden_devices: int = 1  # devices that the machine has, in front of those this process sees

    def no_hardware(self) -> Exception:
        return RuntimeError(self.no_hardware_text or f"No {self.label} devices are available.")

    def out_of_memory(self, index: int, size: int = 2 * GIB, total: int = GIB) -> Exception:
        text = (
            f"{self.label} out of memory. Tried to allocate {size / GIB:.2f} GiB. "
            f"GPU {index} has a total capacity of {total / GIB:g} GiB"
        )
        return torch.OutOfMemoryError(text) if self.oom_is_typed else RuntimeError(text)

    def statistics(self, card: Card) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, value in card.current().items():
            for pool in ("all", "large_pool", "small_pool"):
                found[f"{name}.{pool}.current"] = value if pool == "all" else 0
                found[f"{name}.{pool}.peak"] = card.peaks.get(name, 0) if pool == "all" else 0
                found[f"{name}.{pool}.allocated"] = value
        found["inactive_split_bytes.all.current"] = 0
        found["segment.all.current"] = card.reserved // (2 * 1024**2)
        found.update({name: card.counters[name] for name in COUNTERS})
        return {key: value for key, value in found.items() if self.keys(key)}


@dataclass
class Double:
    """A vendor in place: its driver to set and look at, its traps to switch, and the module that plugins see."""

    flavour: Flavour
    driver: Driver
    traps: set[str]
    module: ModuleType


def cuda(version: str | None = None) -> Flavour:
    properties = {"name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "multi_processor_count": 132}
    properties |= {"is_integrated": 0, "uuid": _Uuid("GPU-1f7c3a52-0c5b-4b0e-9a0e-2b8f6f1f0a11")}
    return Flavour(
        "cuda",
        Surface("cuda", version),
        "CUDA",
        "CUDAGraph",
        properties,
        {"cuda": "13.0", "hip": None},
        reads_priorities=True,
        no_hardware_text="Found no NVIDIA driver on your system.",
    )


def rocm(version: str | None = None) -> Flavour:
    found = cuda(version)
    found.name, found.label = "rocm", "HIP"
    found.torch_version = {"cuda": None, "hip": "7.0.1"}
    found.properties |= {"name": "AMD Instinct MI300X", "gcnArchName": "gfx942:sramecc+:xnack-"}
    found.properties["multi_processor_count"] = 304
    found.no_hardware_text = "No HIP GPUs are available"
    return found


def xpu(version: str | None = None) -> Flavour:
    properties = {
        "name": "Intel(R) Data Center GPU Max 1550",
        "max_compute_units": 512,
        "architecture": 0x2F0,
        "driver_version": "1.6.33578",
    }
    properties |= {"is_integrated_gpu": False, "uuid": bytes(range(16))}
    kept = ("allocated_bytes.", "reserved_bytes.", "active_bytes.", "requested_bytes.")
    return Flavour(
        "xpu",
        Surface("xpu", version),
        "XPU",
        "XPUGraph",
        properties,
        {"xpu": "20250302"},
        keys=lambda key: key.startswith(kept),
        reads_priorities=True,
    )


def npu(version: str | None = None) -> Flavour:
    surface = Surface("npu", version)
    release = tuple(int(part) for part in surface.version.split("."))
    properties = {
        "name": "Ascend910B3",
        "multi_processor_count": 20,
        "cube_core_num": 20,
        "is_integrated": False,
    }
    properties |= {"uuid": "2f0a5f0e-1111-4222-8333-944455556666"}
    return Flavour(
        "npu",
        surface,
        "NPU",
        "NPUGraph",
        properties,
        package="torch_npu",
        padding=32,
        keys=lambda key: release >= (2, 13) or not key.startswith("num_device_"),
        oom_is_typed=release >= (2, 10),
    )


def musa(version: str | None = None) -> Flavour:
    properties = {
        "name": "MTT S5000",
        "major": 3,
        "minor": 1,
        "multi_processor_count": 56,
        "is_integrated": 0,
    }
    return Flavour(
        "musa",
        Surface("musa", version),
        "MUSA",
        "MUSAGraph",
        properties,
        {"musa": "4.3"},
        package="torch_musa",
    )


FLAVOURS: dict[str, Callable[[str | None], Flavour]] = {
    "cuda": cuda,
    "rocm": rocm,
    "xpu": xpu,
    "npu": npu,
    "musa": musa,
}


def build(flavour: Flavour, *, cards: int = 2, traps: set[str] | None = None) -> Double:
    """The vendor's double, not yet in place."""
    driver = Driver(cards=cards, padding=flavour.padding)
    switched: set[str] = traps or set()
    behaviour = DeviceModule(flavour, driver, switched)
    module = strict_module(
        flavour.surface,
        behaviour,
        classes(
            behaviour,
            flavour.graph_class,
            reads_priorities=flavour.reads_priorities,
            shares_events="ipc_handle" in flavour.surface.record["classes"]["Event"]["methods"],
        ),
    )
    behaviour.stream_type = module.Stream
    return Double(flavour, driver, switched, module)


class Patch(Protocol):
    """What is used of pytest's monkeypatch."""

    def setattr(self, target: Any, name: str, value: object, raising: bool = ...) -> None: ...

    def setitem(self, mapping: Any, name: str, value: object) -> None: ...


def install(patch: Patch, double: Double) -> None:
    """Put the double in torch's place until ``patch`` is undone."""
    flavour = double.flavour
    device_type = flavour.surface.module.removeprefix("torch.")
    patch.setattr(torch, device_type, double.module, raising=False)
    for name in ("cuda", "hip", "xpu", "musa"):
        patch.setattr(torch.version, name, flavour.torch_version.get(name), raising=False)
    version = flavour.surface.version
    if flavour.package is None:
        patch.setattr(torch, "__version__", version)
        patch.setattr(torch, "accelerator", accelerator(version, double.driver))
    else:
        real, package = metadata.version, canonicalize_name(flavour.package)
        patch.setattr(
            metadata, "version", lambda name: version if canonicalize_name(name) == package else real(name)
        )
        patch.setitem(sys.modules, flavour.package, ModuleType(flavour.package))
    patch.setattr(torch._C, "_host_emptyCache", lambda: _empty_pinned(double.driver), raising=False)


def accelerator(version: str, driver: Driver) -> ModuleType:
    """``torch.accelerator`` of a torch version, as far as plugins use it."""
    return strict_module(
        Surface("accelerator", version), SimpleNamespace(empty_host_cache=lambda: _empty_pinned(driver)), {}
    )


def _empty_pinned(driver: Driver) -> None:
    driver.pinned["allocated_bytes.current"] = driver.pinned["active_bytes.current"]


class _Uuid:
    """An object that is only good for printing, as torch's CUuuid is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text
