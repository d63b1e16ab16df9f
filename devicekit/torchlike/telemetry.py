"""Reads how a device is doing through a vendor's module, whose functions ask a library that may not be there."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from types import ModuleType

from devicekit.contract import Telemetry

_WHOLE = ("clock", "memory_clock")
# Some libraries answer 0 where they cannot tell; a device that is on has no such temperature, power or clock.
_NEVER_ZERO = ("temperature", "power", "clock", "memory_clock")
_UNKNOWN = (1 << 32) - 1  # others answer -1, without its sign


def read_telemetry(module: ModuleType, functions: Mapping[str, tuple[str, float]], index: int) -> Telemetry:
    """The record for one device; whatever cannot be asked is unknown."""
    found: dict[str, float | int | None] = {}
    for field, (name, factor) in functions.items():
        value = _ask(module, name, index)
        if value is None or (value == 0 and field in _NEVER_ZERO):
            continue
        scaled = value * factor
        found[field] = round(scaled) if field in _WHOLE else scaled
    return Telemetry(**found)  # type: ignore[arg-type]  # whole numbers stand where the record wants them


def _ask(module: ModuleType, name: str, index: int) -> float | None:
    try:
        value = getattr(module, name)(index)
        number = float(value) if isinstance(value, Real) else -1.0
        return number if 0 <= number < _UNKNOWN else None
    except Exception:  # no library, no driver, no permission, a partition: unknown
        return None
