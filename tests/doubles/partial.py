"""Devices that torch serves in part: mps without indices, and torch.accelerator over a backend with gaps."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.doubles.surface import Surface, strict_module


class Mps:
    """torch.mps with its hardware."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def synchronize(self) -> None:
        self.synchronized = True

    def empty_cache(self) -> None:
        self.emptied = True

    def current_allocated_memory(self) -> int:
        return 100

    def driver_allocated_memory(self) -> int:
        return 400

    def recommended_max_memory(self) -> int:
        return 1000

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.fraction = fraction

    def manual_seed(self, seed: int) -> None:
        self.seed_given = seed

    def get_rng_state(self, device: object = "mps") -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, new_state: torch.Tensor, device: object = "mps") -> None:
        self.state = new_state

    def _is_in_bad_fork(self) -> bool:
        return False


class Accelerator:
    """torch.accelerator over one device type; ``fails`` names what its backend never implemented."""

    def __init__(self, device_type: str | None, fails: set[str] | None = None) -> None:
        self.device_type = device_type
        self.fails = fails or set()
        self.calls: list[str] = []
        self.counters = {"allocated_bytes.all.current": 0, "num_ooms": 0, "reserved_bytes.all.current": 0}

    def current_accelerator(self, check_available: bool = False) -> object:
        if self.device_type is None:
            raise RuntimeError(
                "Please register PrivateUse1HooksInterface by `RegisterPrivateUse1HooksInterface`"
            )
        return SimpleNamespace(type=self.device_type)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def current_device_index(self) -> int:
        return 1

    def set_device_index(self, device: object, /) -> None:
        self._note("set_device_index")

    def synchronize(self, device: object = None, /) -> None:
        self._note("synchronize")

    def empty_cache(self) -> None:
        self._note("empty_cache")

    def memory_stats(self, device_index: object = None, /) -> dict[str, int]:
        self._note("memory_stats")
        return self.counters

    def get_memory_info(self, device_index: object = None, /) -> tuple[int, int]:
        self._note("get_memory_info")
        return 3, 7

    def reset_peak_memory_stats(self, device_index: object = None, /) -> None:
        self._note("reset_peak_memory_stats")

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise RuntimeError(f"Allocator for acme is not a DeviceAllocator. ({name})")


def install_acme(
    patch: pytest.MonkeyPatch, shared: Accelerator, version: str = "2.13.0", **functions: object
) -> Accelerator:
    """Put a module of these functions in place as ``torch.acme``, beside a version's ``torch.accelerator``."""
    module = ModuleType("torch.acme")
    module.__dict__.update(functions)
    patch.setattr(torch, "acme", module, raising=False)
    patch.setattr(torch, "accelerator", strict_module(Surface("accelerator", version), shared, {}))
    return shared


class VendorFunctions:
    """A module in the manner of many: counting initialises, and a device that is not there is the current one."""

    def __init__(self) -> None:
        self.initialised = False
        self.peaks_reset: list[int] = []

    def functions(self) -> dict[str, object]:
        return {
            "is_initialized": lambda: self.initialised,
            "is_available": lambda: self.count() > 0,
            "device_count": self.count,
            "_is_in_bad_fork": lambda: False,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: None,
            "memory_stats": self.memory_stats,
            "reset_peak_memory_stats": self.peaks_reset.append,
        }

    def count(self) -> int:
        self.initialised = True
        return 2

    def memory_stats(self, device: int) -> dict[str, int]:
        if device > 1:
            raise IndexError(f"no device {device}")
        return {"allocated_bytes.all.current": 11}
