"""What a request or a control operation can be refused for.

::

    DeviceKitError
    └── SchedulingError
        ├── InvalidRequest      this request can never run; nothing was allocated for it
        ├── InvalidOperation    this control operation makes no sense as it stands
        └── Conflict            it makes sense, but not in the state that things are in
"""

from __future__ import annotations

from devicekit.contract.errors import DeviceKitError


class SchedulingError(DeviceKitError):
    """A refusal by the scheduler."""


class InvalidRequest(SchedulingError):
    """This request can never run. Nothing was allocated for it, and no other request is affected."""


class InvalidOperation(SchedulingError):
    """This control operation makes no sense as it stands, whatever the scheduler is doing."""


class Conflict(SchedulingError):
    """This control operation makes sense, but not in the state that things are in. Nothing was changed."""
