"""Which simulated machine this process is on: one at a time, as with real hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.testing.errors import NotEnabled

if TYPE_CHECKING:
    from devicekit.testing.simulator import Simulator

__all__ = ["DEVICE_TYPE", "replace", "simulator"]

#: The torch device type: ``torch.device("sim:1")``, ``torch.sim``.
DEVICE_TYPE = "sim"

_simulator: Simulator | None = None


def simulator() -> Simulator:
    """The machine in use. Raises NotEnabled when there is none."""
    if _simulator is None:
        raise NotEnabled(
            "there is no simulated accelerator in this process: call devicekit.testing.enable() first"
        )
    return _simulator


def replace(machine: Simulator | None) -> Simulator | None:
    """Put another machine in place and return the one that was there."""
    global _simulator
    before, _simulator = _simulator, machine
    return before
