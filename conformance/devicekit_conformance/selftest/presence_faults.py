"""Faults in presence, indices and properties."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from devicekit.contract import DeviceProperties, MemoryInfo, hookimpl
from devicekit_conformance.selftest.honest import Honest, machine


class TruthyAvailability(Honest):
    """is_available() returns a number."""

    caught_by = "DK-CORE-001"

    @hookimpl
    def is_available(self) -> bool:
        return 1  # type: ignore[return-value]  # the fault


class FlickeringAvailability(Honest):
    """is_available() changes its mind."""

    caught_by = "DK-CORE-001"
    asked = 0

    @hookimpl
    def is_available(self) -> bool:
        self.asked += 1
        return self.asked % 2 == 1


class FractionalCount(Honest):
    """device_count() returns a float."""

    caught_by = "DK-CORE-002"

    @hookimpl
    def device_count(self) -> int:
        return 2.0  # type: ignore[return-value]  # the fault


class CountWithoutAvailability(Honest):
    """Devices are counted that are not available."""

    caught_by = "DK-CORE-002"

    @hookimpl
    def is_available(self) -> bool:
        return False


class ProbeInitialises(Honest):
    """Asking whether the device is there creates its context."""

    caught_by = "DK-CORE-003"

    @hookimpl
    def device_count(self) -> int:
        machine().initialize()
        return super().device_count()


class WrongDeviceType(Honest):
    """The manifest names another device type than torch does."""

    caught_by = "DK-CORE-004"
    manifest = replace(Honest.manifest, device_type="meta")


class Unfinished(Honest):
    """A hook is there and raises NotImplementedError."""

    caught_by = "DK-CORE-005"

    @hookimpl
    def host_memory_stats(self):  # type: ignore[no-untyped-def]  # the fault
        raise NotImplementedError


class TupleForRecord(Honest):
    """memory_info() returns the vendor's tuple."""

    caught_by = "DK-CORE-006"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        found = super().memory_info(index)
        return (found.free, found.total)  # type: ignore[return-value]  # the fault


class ChattySynchronize(Honest):
    """synchronize() returns something."""

    caught_by = "DK-CORE-006"

    @hookimpl
    def synchronize(self, index: int) -> None:
        super().synchronize(index)
        return True  # type: ignore[return-value]  # the fault


class EmptyName(Honest):
    """An unknown name is empty instead of None."""

    caught_by = "DK-CORE-007"

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        return replace(super().device_properties(index), name="")


class ZeroUnits(Honest):
    """An unknown number is 0 instead of None."""

    caught_by = "DK-CORE-007"

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        return replace(super().device_properties(index), compute_units=0)


class DeafSelection(Honest):
    """set_index() does nothing."""

    caught_by = "DK-CORE-008"

    @hookimpl
    def set_index(self, index: int) -> None:
        """The device stays as it is."""


class OneSelectionForAll(Honest):
    """One thread's choice of device is every thread's."""

    caught_by = "DK-CORE-012"
    chosen: ClassVar[int] = 0

    @hookimpl
    def set_index(self, index: int) -> None:
        OneSelectionForAll.chosen = index
        super().set_index(index)

    @hookimpl
    def current_index(self) -> int:
        return OneSelectionForAll.chosen


class ClampedIndex(Honest):
    """An index that does not exist is answered for another device."""

    caught_by = "DK-CORE-009"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        return super().memory_info(max(0, min(index, 1)))


class LeavesDeviceCurrent(Honest):
    """Reading the memory of a device makes it current."""

    caught_by = "DK-CORE-010"

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        machine().set_device(index)
        return super().memory_info(index)


class Nameless(Honest):
    """The device has no name."""

    caught_by = "DK-CORE-011"

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        return replace(super().device_properties(index), name=None)
