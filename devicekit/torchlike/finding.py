"""What was found out about a device without a plugin, by trying it: here, or in a child of this process.

To try a device is to initialise it, after which no child of this process can use it. So a device that can tell
that it is not in use yet is tried in a forked child, which ends with what it initialised.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

_SECONDS = 60.0  # a cold driver answers within ten


@dataclass(frozen=True, slots=True, repr=False)
class Findings:
    """What a device does, by what was seen of it. Its ``repr`` is Python, to be kept in a plugin.

    Attributes:
        served: functions and classes that torch itself serves for the device, by the names of a vendor's module.
        pins: whether torch page-locks host memory for the device.
        claims: capabilities that it was seen to have.
    """

    served: frozenset[str] = frozenset()
    pins: bool = False
    claims: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        served, claims = (f"frozenset({sorted(one)})" for one in (self.served, self.claims))
        return f"Findings(served={served}, pins={self.pins}, claims={claims})"


NOTHING = Findings()


def found(device_type: str, look: Callable[[], Findings]) -> Findings:
    """What ``look`` finds, without initialising the device in this process where that can be avoided."""
    initialised = getattr(getattr(torch, device_type, None), "is_initialized", None)
    if not hasattr(os, "fork") or not callable(initialised) or initialised():
        return look()
    return _in_child(look)


def _in_child(look: Callable[[], Findings]) -> Findings:
    """What ``look`` finds in a forked child; nothing if the child fails, or does not answer in time."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of every fork beside threads; this child only calls torch, and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.close(reading)
            seen = look()
            answer = {"served": sorted(seen.served), "pins": seen.pins, "claims": sorted(seen.claims)}
            os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    try:
        return _parsed(_read(reading, time.monotonic() + _SECONDS))
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # the host may reap its children itself
            os.waitpid(child, 0)


def _read(reading: int, deadline: float) -> bytes:
    found = b""
    while (left := deadline - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        part = os.read(reading, 1 << 16)
        if not part:
            break
        found += part
    return found


def _parsed(answer: bytes) -> Findings:
    try:
        seen = json.loads(answer)
    except ValueError:  # it failed before it could answer, or was cut short
        return NOTHING
    return Findings(frozenset(seen["served"]), bool(seen["pins"]), frozenset(seen["claims"]))
