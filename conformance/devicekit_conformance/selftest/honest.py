"""The backend that every faulty one is made from, and what faults need to know of the machine under it."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import ClassVar

import torch

from devicekit.contract.manifest import Manifest
from devicekit.contract.records import MemoryStats
from devicekit.testing import Simulator, enable, sim_backend
from devicekit_conformance.simulated import become

_MANIFEST = become("discrete")
_SIZES = (
    "allocated",
    "requested",
    "active",
    "reserved",
    "inactive_split",
    "peak_allocated",
    "peak_active",
    "peak_reserved",
)


class Honest(sim_backend.SimBackend):
    """The simulated accelerator, without a fault."""

    manifest: ClassVar[Manifest] = _MANIFEST
    caught_by: ClassVar[str]


def machine() -> Simulator:
    return enable()


def claiming(*added: str) -> Manifest:
    """The honest manifest with more capabilities."""
    return dataclasses.replace(_MANIFEST, capabilities=_MANIFEST.capabilities | set(added))


def denying(*removed: str) -> Manifest:
    """The honest manifest with fewer capabilities."""
    return dataclasses.replace(_MANIFEST, capabilities=_MANIFEST.capabilities - set(removed))


def in_every_size(stats: MemoryStats, change: Callable[[int], int | float]) -> MemoryStats:
    """Statistics in which every figure in bytes is changed."""
    changed = {name: change(value) for name in _SIZES if (value := getattr(stats, name)) is not None}
    return dataclasses.replace(stats, **changed)  # type: ignore[arg-type]  # wrong types are faults, too


def overwrite_live_memory(dtype: torch.dtype = torch.uint8) -> None:
    """What a backend does that frees memory in use, and somebody else then writes to."""
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.device.type == "sim" and found.dtype == dtype:
            found.zero_()
