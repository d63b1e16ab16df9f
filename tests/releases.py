"""What the oldest torch that is claimed cannot do: under one name, so that a run can count it."""

from __future__ import annotations

import re

import pytest
import torch
from packaging.version import Version

from devicekit.testing import CannotEnable

NO_SIMULATOR = "the simulated accelerator needs torch 2.10"
OLD_TORCH = Version(torch.__version__).release < (2, 10)

needs_simulator = pytest.mark.skipif(OLD_TORCH, reason=NO_SIMULATOR)
"""For tests that use the simulated accelerator in a process of their own."""

_REFUSED = re.compile(r"the simulated accelerator needs torch >= 2\.10, and this is 2\.[789]\b")


def left_out(error: BaseException, *, old: bool = OLD_TORCH) -> str | None:
    """The name of what ``error`` refuses for an old torch alone; None if it is anything else."""
    if old and isinstance(error, CannotEnable) and _REFUSED.match(str(error)):
        return NO_SIMULATOR
    return None
