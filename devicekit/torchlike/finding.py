"""What was found out about a device without a plugin, by trying it: here, or in a child of this process.

To try a device is to initialise it, after which no child of this process can use it. So a device that can tell
that it is not in use yet is tried in a forked child, which ends with what it initialised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import cast

import torch

from devicekit.torchlike.child import ask_in_child


@dataclass(frozen=True, slots=True, repr=False)
class Findings:
    """What a device does, by what was seen of it. Its ``repr`` is Python, to be kept in a plugin.

    Attributes:
        served: functions and classes that torch itself serves for the device, by the names of a vendor's module.
        pins: whether torch page-locks host memory for the device.
        claims: capabilities that it was seen to have.
        lenient: functions of the module that answer for a device that does not exist.
        counting_initialises: whether to ask how many devices there are is to initialise them.
    """

    served: frozenset[str] = frozenset()
    pins: bool = False
    claims: frozenset[str] = frozenset()
    lenient: frozenset[str] = frozenset()
    counting_initialises: bool = False

    def __repr__(self) -> str:
        # What is not remarkable is left out, so that what is kept can be read at a glance.
        told = [(one.name, getattr(self, one.name)) for one in fields(self)]
        shown = [f"{name}={_python(value)}" for name, value in told if value]
        return f"Findings({', '.join(shown)})"


def _python(value: object) -> str:
    return f"frozenset({sorted(value)})" if isinstance(value, frozenset) else repr(value)


NOTHING = Findings()


def found(device_type: str, look: Callable[[], Findings]) -> Findings:
    """What ``look`` finds, without initialising the device in this process where that can be avoided.

    Nothing, if a child was asked and failed or did not answer in time.
    """
    initialised = getattr(getattr(torch, device_type, None), "is_initialized", None)
    if not hasattr(os, "fork") or not callable(initialised) or initialised():
        return look()
    try:
        seen = cast("dict[str, list[str] | bool]", ask_in_child(lambda: _plain(look())))
    except RuntimeError:
        return NOTHING
    return Findings(**{name: _set(value) for name, value in seen.items()})  # type: ignore[arg-type]  # as _plain wrote


def _plain(findings: Findings) -> dict[str, object]:
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in asdict(findings).items()
    }


def _set(value: list[str] | bool) -> frozenset[str] | bool:
    return frozenset(value) if isinstance(value, list) else value
