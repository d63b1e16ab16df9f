"""Settings that are numbers, held to their range where they are given, and told by name.

A size of -1 or a time that is NaN found later is a pool that nobody can be served from, or a wait that never ends.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeGuard

from devicekit.contract.errors import ConfigurationError

MOST_IDS = 2**31 - 2
"""Ids of pages, rows and slots are 32 bits wide, and id 0 is padding."""


class OutOfRange(ConfigurationError, ValueError):
    """A number that a setting cannot be. The message names the setting, the range and what was given."""


def whole(name: str, value: object, *, least: int = 0, most: int | None = None) -> None:
    """Raise `OutOfRange` unless ``value`` is a whole number from ``least`` to ``most``; ``None``: no upper end."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise OutOfRange(f"{name} must be a whole number of at least {least}, not {_shown(value)}")
    if most is not None and int(value) > most:
        raise OutOfRange(f"{name} must be at most {most:,}, not {_shown(value)}")


def finite(name: str, value: object, *, above: float | None = None, least: float | None = None) -> None:
    """Raise `OutOfRange` unless ``value`` is a finite number above ``above`` and of at least ``least``."""
    if not _is_finite(value):
        raise OutOfRange(f"{name} must be a finite number, not {_shown(value)}")
    if above is not None and value <= above:
        raise OutOfRange(f"{name} must be above {above:g}, not {_shown(value)}")
    if least is not None and value < least:
        raise OutOfRange(f"{name} must be at least {least:g}, not {_shown(value)}")


def _is_finite(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes out no whole number of so many digits
        return "a number of thousands of digits"
