"""Lightning's accelerator, served from a Device."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import Accelerator

import devicekit


class DevicekitAccelerator(Accelerator):
    """The devices of devicekit's default backend, as Lightning's Trainer asks for them."""

    def setup_device(self, device: torch.device) -> None:
        """Make the strategy's device current.

        Raises:
            MisconfigurationException: it is of another kind: nothing is trained elsewhere in silence.
        """
        opened = devicekit.get_device()
        if device.type != opened.torch_device.type:
            raise MisconfigurationException(
                f"The strategy trains on {device}, and devicekit opened {opened.torch_device.type}. "
                'Give the Trainer strategy="devicekit", or a strategy with that device.'
            )
        devicekit.make_current(device)

    def teardown(self) -> None:
        """Hand unused memory back to the driver."""
        devicekit.current_device().release_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """The allocator's counters; empty where nobody counts."""
        return dict(devicekit.device_for(device).memory_stats().raw)

    @staticmethod
    def parse_devices(devices: int | str | list[int]) -> list[int]:
        """Indices: of the first so many devices, of a list, or of "0,1"."""
        if isinstance(devices, str):
            devices = [int(one) for one in devices.split(",")] if "," in devices else int(devices)
        if isinstance(devices, int):
            count = DevicekitAccelerator.auto_device_count() if devices == -1 else devices
            return list(range(count))
        return list(devices)

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """The devices at these indices."""
        opened = devicekit.get_device()
        if not opened.backend.manifest.indexed:
            return [opened.torch_device] * len(devices)
        return [devicekit.device_for(index).torch_device for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        """How many devices this process can see."""
        return devicekit.get_device().backend.device_count or 1

    @staticmethod
    def is_available() -> bool:
        """Whether a backend can be opened.

        Raises:
            SelectionError, ContractError: hardware is there, and its plugin failed.
        """
        return devicekit.get_device() is not None

    @staticmethod
    def name() -> str:
        """The name in Lightning's registry."""
        return "devicekit"
