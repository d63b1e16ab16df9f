"""What can be wrong with a fleet as a whole. What is wrong with one engine is its outcome, not an error."""

from __future__ import annotations

from devicekit.contract.errors import DeviceKitError


class FleetError(DeviceKitError):
    """Root of the errors about a fleet."""


class FleetBusy(FleetError):
    """Somebody else steers this fleet now: another process, or another verb of this one."""


class NoFleetWeights(FleetError):
    """It is not known which weights the fleet has: adopt what its engines serve, or update them."""


class RecordNotWritten(FleetError):
    """The fleet's file cannot be written: no room, no right to, or somebody else has. It is left as it is."""


class UnknownMembers(FleetError):
    """Who belongs to the fleet cannot be found out: its gateway or its DNS does not say."""
