"""Makes the accelerator known to Lightning."""

from __future__ import annotations

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry

import devicekit
from devicekit_lightning.accelerator import DevicekitAccelerator

NAME = "devicekit"


class DevicekitStrategy(SingleDeviceStrategy):
    """Training on one device: Lightning's own choice for an accelerator from outside is the host's processor."""

    strategy_name = NAME

    def __init__(self, device: str | None = None, **options: object) -> None:
        super().__init__(device=devicekit.get_device(device).torch_device, **options)


def register() -> None:
    """Register accelerator and strategy "devicekit". Calling it again changes nothing."""
    if NAME not in AcceleratorRegistry:
        AcceleratorRegistry.register(
            NAME, DevicekitAccelerator, description="Any device that devicekit opens"
        )
    if NAME not in StrategyRegistry:
        StrategyRegistry.register(NAME, DevicekitStrategy, description="One device that devicekit opens")
