"""A backend in the manner of one-class accelerator layers, which many vendors have ported before they come here.

Its peak is what the driver has given out, an index is ignored, and what is missing is None or 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from devicekit.contract import AllocatorState, DeviceProperties, MemoryInfo, MemoryStats, Stream, hookimpl
from devicekit.contract.manifest import Manifest
from devicekit.testing import enable
from devicekit.testing.sim_backend import SimBackend
from devicekit_conformance.simulated import become


class AcceleratorStyle(SimBackend):
    """What its author believes to be a faithful port."""

    manifest: ClassVar[Manifest] = become("discrete")

    @hookimpl
    def synchronize(self, index: int) -> None:
        super().synchronize(enable().index_of())

    @hookimpl
    def current_stream(self, index: int) -> Stream:
        return None  # type: ignore[return-value]  # "not supported here"

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        found = super().memory_stats(enable().index_of())
        if found.state is not AllocatorState.OK:
            return MemoryStats(AllocatorState.OK, allocated=0, peak_allocated=0, reserved=0)
        driver = super().memory_info(index)
        return replace(found, peak_allocated=(driver.total or 0) - (driver.free or 0))

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        total = super().memory_info(index).total or 0
        return MemoryInfo(total - (super().memory_stats(index).allocated or 0), total, "runtime")

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        return replace(super().device_properties(index), compute_units=0)
