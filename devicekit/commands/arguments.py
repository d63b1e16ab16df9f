"""Types of values for options."""

from __future__ import annotations

import argparse
import math

from devicekit.contract.text import shown

_MOST = 86_400.0 * 365  # seconds; clocks and threads take no more than they can count


def seconds(text: str) -> float:
    """A positive number of seconds.

    Raises:
        argparse.ArgumentTypeError: it is none; the parser tells the user.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MOST:
        raise argparse.ArgumentTypeError(
            f"must be a positive number of seconds, at most a year, not {shown(text)}"
        )
    return value
