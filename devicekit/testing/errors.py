"""What the simulated accelerator raises on its own account.

::

    RuntimeError
    ├── CannotEnable        this process cannot have it: torch is too old, or another backend took its place
    ├── NotEnabled          used before enable()
    ├── ForkedAfterUse      used in a child that was forked after its parent initialised the device
    ├── WrongDevice         operands on different devices, or an index that does not exist
    ├── StaleTensor         a tensor of a simulated machine that has been replaced
    ├── CaptureError        something that cannot be part of a graph, while one is captured
    ├── DeviceLost          scripted: the device is gone
    └── HangEnded           scripted: a hang reached its bound

Out of memory is ``torch.OutOfMemoryError``. They are RuntimeErrors because torch's own device errors are.
"""

from __future__ import annotations

__all__ = [
    "CannotEnable",
    "CaptureError",
    "DeviceLost",
    "ForkedAfterUse",
    "HangEnded",
    "NotEnabled",
    "StaleTensor",
    "WrongDevice",
]


class CannotEnable(RuntimeError):
    """This process cannot have the simulated accelerator, and the message says why."""


class NotEnabled(RuntimeError):
    """The simulated accelerator was used before ``devicekit.testing.enable()``."""


class ForkedAfterUse(RuntimeError):
    """The device was initialised before this process was forked, and cannot be used here."""


class WrongDevice(RuntimeError):
    """Operands on different devices, or a device that does not exist."""


class StaleTensor(RuntimeError):
    """A tensor of a simulated machine that has been replaced by another."""


class CaptureError(RuntimeError):
    """Something that cannot be part of a graph was asked for while one was captured."""


class DeviceLost(RuntimeError):
    """The device is gone, and so is everything on it. Terminal: each later use of it raises this again."""

    def __init__(self, index: int | None) -> None:
        super().__init__(f"device {index} was lost: it no longer answers, and everything on it is gone")
        self.index = index


class HangEnded(RuntimeError):
    """A scripted hang reached its bound and nobody had ended it: the code under test waited for ever."""
