"""Faults in random numbers, processes and host memory."""

from __future__ import annotations

import atexit
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

import torch

from devicekit.contract import (
    AllocatorState,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    hookimpl,
)
from devicekit_conformance.selftest.honest import Honest, machine


class IgnoresTheSeed(Honest):
    """Seeding does nothing."""

    caught_by = "DK-RNG-001"

    @hookimpl
    def manual_seed(self, index: int, seed: int) -> None:
        """The numbers go on as they were."""


class KeepsItsState(Honest):
    """Restoring the random state does nothing."""

    caught_by = "DK-RNG-002"

    @hookimpl
    def set_rng_state(self, index: int, state: torch.Tensor) -> None:
        """The numbers go on as they were."""


class StateOfFloats(Honest):
    """The random state is a tensor of floats."""

    caught_by = "DK-RNG-003"

    @hookimpl
    def get_rng_state(self, index: int) -> torch.Tensor:
        return super().get_rng_state(index).to(torch.float32)

    @hookimpl
    def set_rng_state(self, index: int, state: torch.Tensor) -> None:
        super().set_rng_state(index, state.to(torch.uint8))


class SeedsEverything(Honest):
    """Seeding the device seeds the host as well."""

    caught_by = "DK-RNG-004"

    @hookimpl
    def manual_seed(self, index: int, seed: int) -> None:
        torch.manual_seed(seed)
        super().manual_seed(index, seed)


class PoisonsFork(Honest):
    """After the parent asked for devices, a forked child cannot."""

    caught_by = "DK-PROC-001"
    asked_by: ClassVar[int | None] = None

    @hookimpl
    def device_count(self) -> int:
        if PoisonsFork.asked_by not in (None, os.getpid()):
            raise RuntimeError("cannot re-initialise the device in a forked process")
        PoisonsFork.asked_by = os.getpid()
        return super().device_count()


class ZerosInAFork(Honest):
    """In a forked child, unknown numbers are 0."""

    caught_by = "DK-PROC-002"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        if machine().in_bad_fork():
            return MemoryStats(AllocatorState.OK, allocated=0, reserved=0)
        return super().memory_stats(index)


class SnapshotsInAFork(Honest):
    """A forked child is shown the segments of its parent's device."""

    caught_by = "DK-PROC-014"

    @hookimpl
    def memory_snapshot(self, index: int) -> Sequence[Mapping[str, object]] | None:
        return machine().device(index).allocator.snapshot()


class RefusesSnapshotsInAFork(Honest):
    """In a forked child, looking at the allocator raises."""

    caught_by = "DK-PROC-014"

    @hookimpl
    def memory_snapshot(self, index: int) -> Sequence[Mapping[str, object]] | None:
        if machine().in_bad_fork():
            raise RuntimeError("cannot see the allocator of another process")
        return super().memory_snapshot(index)


class AlwaysABadFork(Honest):
    """A first process is called a bad fork."""

    caught_by = "DK-PROC-003"

    @hookimpl
    def is_bad_fork(self) -> bool:
        return True


class UnknownCollectives(Honest):
    """The collective backend is one that torch.distributed does not know."""

    caught_by = "DK-PROC-004"
    manifest = replace(Honest.manifest, collective_backend=None)

    @hookimpl
    def collective_backend(self) -> str:
        return "sccl"


class TwoVariables(Honest):
    """The hook names another variable than the manifest."""

    caught_by = "DK-PROC-005"
    manifest = replace(Honest.manifest, visible_devices_variable="SIM_VISIBLE_DEVICES")


class IgnoresItsVariable(Honest):
    """The variable that hides devices hides none."""

    caught_by = "DK-PROC-006"
    manifest = replace(Honest.manifest, visible_devices_variable="SIM_VISIBLE_DEVICES")

    @hookimpl
    def visible_devices_variable(self) -> str | None:
        return "SIM_VISIBLE_DEVICES"


class CannotBePickled(Honest):
    """A record holds something that cannot be pickled."""

    caught_by = "DK-PROC-007"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(index)
        return replace(found, raw=MappingProxyType(dict(found.raw)))


class FailsAtExit(Honest):
    """A process that used the device ends with an error."""

    caught_by = "DK-PROC-008"

    @hookimpl
    def synchronize(self, index: int) -> None:
        atexit.register(os._exit, 1)
        super().synchronize(index)


class HandlesStayHere(Honest):
    """The handle of an exported tensor cannot be pickled."""

    caught_by = "DK-PROC-009"

    @hookimpl
    def export_ipc(self, tensor: torch.Tensor) -> object:
        return threading.Lock()


class ExportsACopy(Honest):
    """What is exported is another tensor."""

    caught_by = "DK-PROC-011"

    def __init__(self) -> None:
        self._copies: list[torch.Tensor] = []

    @hookimpl
    def export_ipc(self, tensor: torch.Tensor) -> object:
        self._copies.append(torch.zeros_like(tensor))
        return super().export_ipc(self._copies[-1])


class AsksATool(Honest):
    """Reading the driver's figures starts a process."""

    caught_by = "DK-PROC-010"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        subprocess.run(["true"], check=True)
        return super().memory_info(index)


class NotPinned(Honest):
    """Pinning returns an ordinary copy."""

    caught_by = "DK-CAP-009"

    @hookimpl
    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


class HostFloats(Honest):
    """The host cache is counted in floats."""

    caught_by = "DK-CAP-010"

    @hookimpl
    def host_memory_stats(self) -> HostMemoryStats:
        return HostMemoryStats(0.0, 0.0)  # type: ignore[arg-type]  # the fault


class NegativeRoom(Honest):
    """More is active than there is, so that an engine would be told of less than nothing."""

    caught_by = "DK-ENGINE-002"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return replace(super().memory_stats(index), active=1 << 50)


class KeepsEngines(Honest):
    """Each question about capture keeps a block, which engines ask at every release point."""

    caught_by = "DK-ENGINE-003"

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    @hookimpl
    def is_capturing(self, index: int) -> bool:
        if machine().initialized:
            self._kept.append(torch.empty(1 << 16, dtype=torch.uint8, device=torch.device("sim", index)))
        return super().is_capturing(index)


class OneProcessAtATime(Honest):
    """The first process to use the device locks the others out."""

    caught_by = "DK-PROC-012"

    @hookimpl
    def synchronize(self, index: int) -> None:
        if os.environ.setdefault("FAULTY_DEVICE_OWNER", str(os.getpid())) != str(os.getpid()):
            raise RuntimeError("the device is in use by another process")
        super().synchronize(index)


class AbsentCollectives(Honest):
    """The collective backend is a known one that this torch was not built with."""

    caught_by = "DK-PROC-013"
    manifest = replace(Honest.manifest, collective_backend="mpi")

    @hookimpl
    def collective_backend(self) -> str:
        return "mpi"
