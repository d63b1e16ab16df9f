"""Faults in importing and constructing."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import ClassVar

import devicekit.registry.probing
from devicekit.contract import hookimpl
from devicekit_conformance.selftest.honest import Honest, machine


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


class SelectsADevice(Honest):
    """Constructing the plugin makes the second device current."""

    caught_by = "DK-LOAD-013"

    def __init__(self) -> None:
        self.set_index(1)


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
