"""Waiting for another process: as short as possible, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Look again and again until a condition holds.

    Raises:
        TimeoutError: it did not within ``seconds`` of real time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {seconds:g} s")
        time.sleep(0.002)
