"""Faults in loading, presence, indices and properties."""

from __future__ import annotations

import os
import socket
import sys
import threading
from dataclasses import replace
from typing import ClassVar

import devicekit.registry.probing
from devicekit.contract import DeviceProperties, MemoryInfo, hookimpl
from devicekit_conformance.selftest.honest import Honest, denying, machine


class MisspeltHook(Honest):
    """A hook's name is misspelt."""

    caught_by = "DK-LOAD-001"

    @hookimpl
    def empty_chache(self) -> None:
        """Nobody calls this."""


class ForgottenArgument(Honest):
    """A hook leaves its index out, so that it works on whatever device is current."""

    caught_by = "DK-LOAD-001"

    @hookimpl
    def synchronize(self) -> None:  # type: ignore[override]  # the fault
        super().synchronize(0)


class DefaultedArgument(Honest):
    """A hook's argument has a default, which some versions of pluggy then never pass."""

    caught_by = "DK-LOAD-001"

    @hookimpl
    def synchronize(self, index: int = 0) -> None:
        super().synchronize(index)


class UndecoratedHook(Honest):
    """A hook is written and not decorated."""

    caught_by = "DK-LOAD-001"

    def empty_cache(self) -> None:
        super().empty_cache()


class ConstructorWithArguments(Honest):
    """The class cannot be constructed without arguments."""

    caught_by = "DK-LOAD-001"

    def __init__(self, driver: str) -> None:
        self.driver = driver


class InitialisesWhenConstructed(Honest):
    """Constructing the plugin initialises the device."""

    caught_by = "DK-LOAD-003"

    def __init__(self) -> None:
        machine().initialize()


class SetsAVariable(Honest):
    """Constructing the plugin changes the environment."""

    caught_by = "DK-LOAD-004"

    def __init__(self) -> None:
        os.environ["SIM_LAUNCH_BLOCKING"] = "1"


class StartsAThread(Honest):
    """Constructing the plugin starts a thread."""

    caught_by = "DK-LOAD-004"

    def __init__(self) -> None:
        threading.Thread(target=threading.Event().wait, daemon=True, name="sim-monitor").start()


class GreetsTheUser(Honest):
    """Constructing the plugin prints."""

    caught_by = "DK-LOAD-005"

    def __init__(self) -> None:
        print("sim runtime 1.0")


class CallsHome(Honest):
    """Constructing the plugin opens a connection."""

    caught_by = "DK-LOAD-006"

    def __init__(self) -> None:
        with socket.socket() as connection:
            connection.connect_ex(("127.0.0.1", 9))


class LeavesAFolder(Honest):
    """Constructing the plugin leaves a folder where the user works."""

    caught_by = "DK-LOAD-012"

    def __init__(self) -> None:
        os.makedirs("kernel_meta", exist_ok=True)


class SecondInstanceDiffers(Honest):
    """The second instance in a process sees fewer devices."""

    caught_by = "DK-LOAD-007"
    made: ClassVar[int] = 0

    def __init__(self) -> None:
        SecondInstanceDiffers.made += 1
        self._first = SecondInstanceDiffers.made == 1

    @hookimpl
    def device_count(self) -> int:
        return 2 if self._first else 1


class ChangesTheHost(Honest):
    """The plugin replaces a function of devicekit's."""

    caught_by = "DK-LOAD-009"

    def __init__(self) -> None:
        devicekit.registry.probing.probe_timeout = lambda: 1e6


class BehavesUnderTest(Honest):
    """The plugin behaves when it is being tested."""

    caught_by = "DK-LOAD-011"

    @hookimpl
    def visible_devices_variable(self) -> str | None:
        return None if "pytest" in sys.modules else "SIM_VISIBLE_DEVICES"


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


class DeniesStreams(Honest):
    """Streams are implemented and not claimed."""

    caught_by = "DK-CAP-002"
    manifest = denying("streams")


class ListedTwice(Honest):
    """A hook is listed as doing nothing and as emulated."""

    caught_by = "DK-CAP-008"
    manifest = replace(Honest.manifest, emulated=frozenset({"collect_ipc"}))
