"""The simulated accelerator and fault injection, for tests without hardware.

:func:`enable` gives this process a torch device type ``sim``, in pure Python on torch's CPU wheel, 2.10 or newer::

    from devicekit.testing import SimConfig, enable, simulation

    enable()
    x = torch.ones(3, device="sim:1")       # real tensors, on two devices
    torch.sim.memory_stats()                # a caching allocator's counters
    with simulation(SimConfig(capacity=8 * MIB)) as machine:
        ...                                 # on a fresh machine

    devicekit.testing.sim_backend.register()
    devicekit.get_device("sim")             # and as a devicekit backend

Results are the host's own, bit for bit. Time is virtual: work that was submitted is pending until somebody waits
for it, asks often enough, or moves the clock (``machine.clock.advance(seconds)``).

What it cannot do
-----------------
- Be taken back: the device type stays for the life of the process, and torch has room for one such type.
- Run kernels late. An operator's effect is there when it returns, and only its *time* is pending; that two kernels
  in different streams race is not seen. Copies between host and device are late, see :mod:`.transfer`.
- ``.to("sim")`` and ``torch.tensor(..., device="sim")`` without an index mean device 0, whatever the current
  device: torch asks a C++ guard that a backend in Python cannot replace. Name the index.
- ``backward()`` on any device but 0, and ``torch.autocast``: both raise.
- ``torch.Stream``, ``torch.Event`` and ``torch.accelerator.current_stream`` do nothing: use ``torch.sim``'s.
- ``torch.Generator("sim")``, raw storages on the device (hence ``torch.load(map_location="sim")``),
  ``untyped_storage().resize_()``, DLPack, and ``torch.empty(..., pin_memory=True)`` on the host raise;
  ``tensor.pin_memory()`` works.
- Collectives on its tensors, sparse, quantized and nested tensors, and recurrent layers: they raise.
- ``untyped_storage().byteswap()`` ends the process, in torch's own C++.
- Be fast: an operator costs about 20 µs more than on the host.

What else changes in the process: ``torch.accelerator`` and ``torch.get_device_module()`` speak of this device,
``torch.manual_seed`` seeds it too, and ``tensor.pin_memory()`` pins instead of raising.
"""

from __future__ import annotations

from devicekit.testing.clock import Clock, ClockStuck, MockClock, SystemClock, Timer
from devicekit.testing.config import GIB, KIB, MIB, SimConfig
from devicekit.testing.errors import (
    CannotEnable,
    CaptureError,
    DeviceLost,
    ForkedAfterUse,
    HangEnded,
    NotEnabled,
    StaleTensor,
    WrongDevice,
)
from devicekit.testing.faults import Fault, FaultScript, Hang, Hit, LoseDevice, OutOfMemory, Raise, Slow
from devicekit.testing.install import enable, is_enabled, simulation
from devicekit.testing.simulator import OtherProcess, Simulator

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "CannotEnable",
    "CaptureError",
    "Clock",
    "ClockStuck",
    "DeviceLost",
    "Fault",
    "FaultScript",
    "ForkedAfterUse",
    "Hang",
    "HangEnded",
    "Hit",
    "LoseDevice",
    "MockClock",
    "NotEnabled",
    "OtherProcess",
    "OutOfMemory",
    "Raise",
    "SimConfig",
    "Simulator",
    "Slow",
    "StaleTensor",
    "SystemClock",
    "Timer",
    "WrongDevice",
    "enable",
    "is_enabled",
    "simulation",
]
