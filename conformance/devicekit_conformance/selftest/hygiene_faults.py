"""Faults in what a hook leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time

import torch

from devicekit.contract import (
    DeviceProperties,
    MemoryInfo,
    hookimpl,
)
from devicekit_conformance.selftest.honest import Honest, machine

_malloc = ctypes.CDLL(None).malloc
_malloc.restype = ctypes.c_void_p


class Prints(Honest):
    """A hook prints."""

    caught_by = "DK-HYG-001"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        print("memory_info")
        return super().memory_info(index)


class PrintsFromC(Honest):
    """A hook writes to the file descriptor, past Python."""

    caught_by = "DK-HYG-001"

    @hookimpl
    def collect_ipc(self) -> None:
        os.write(2, b"[W] nothing to collect\n")


class StartsThreads(Honest):
    """A hook starts a thread each time."""

    caught_by = "DK-HYG-002"

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return super().device_properties(index)


class SetsAVariableLate(Honest):
    """A hook changes the environment when it is first called."""

    caught_by = "DK-HYG-003"

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        os.environ.setdefault("SIM_ARCHITECTURE", "1.0")
        return super().device_properties(index)


class LeaksObjects(Honest):
    """A hook keeps what it returned."""

    caught_by = "DK-HYG-004"

    def __init__(self) -> None:
        self._kept: list[DeviceProperties] = []

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        self._kept.append(super().device_properties(index))
        return self._kept[-1]


class LeaksFiles(Honest):
    """A hook leaves a file open."""

    caught_by = "DK-HYG-005"

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        os.open(os.devnull, os.O_RDONLY)
        return super().device_properties(index)


class OneCallerAtATime(Honest):
    """A hook fails when two threads call it at once."""

    caught_by = "DK-HYG-006"

    def __init__(self) -> None:
        self._busy = False

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        if self._busy:
            raise RuntimeError("the management library is busy")
        self._busy = True
        time.sleep(0.001)
        self._busy = False
        return super().memory_info(index)


class LeaksDeviceMemory(Honest):
    """Asking whether a graph is captured keeps device memory."""

    caught_by = "DK-HYG-007"

    def __init__(self) -> None:
        self._kept: list[torch.Tensor] = []

    @hookimpl
    def is_capturing(self, index: int) -> bool:
        if machine().initialized:
            self._kept.append(torch.empty(512, dtype=torch.uint8, device=torch.device("sim", index)))
        return super().is_capturing(index)


class SwallowsEverything(Honest):
    """A bare except turns an error of the runtime into zeros."""

    caught_by = "DK-HYG-009"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        try:
            return super().memory_info(index)
        except (IndexError, ValueError):
            raise
        except Exception:
            return MemoryInfo(0, 0, "runtime")


class CannotBeInterrupted(Honest):
    """A hook swallows KeyboardInterrupt."""

    caught_by = "DK-HYG-010"

    @hookimpl
    def collect_ipc(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            super().collect_ipc()
            time.time()


class LeaksNativeMemory(Honest):
    """A hook keeps memory that Python does not count."""

    caught_by = "DK-HYG-011"

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        ctypes.memset(_malloc(16384), 1, 16384)
        return super().device_properties(index)
