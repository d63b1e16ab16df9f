"""Finds out about a device without a plugin by trying it, here or in another process.

Trying a device initialises it, after which no child of this process can use it. So a device that can tell that it
is not in use yet is tried in a process which ends with what it initialised: a fresh one, or a forked child where
the module exists in this process only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import cast

import torch

from devicekit.torchlike.child import ask_in_child
from devicekit.torchlike.elsewhere import package_of, try_elsewhere


@dataclass(frozen=True, slots=True, repr=False)
class Findings:
    """What a device does, by what was seen of it. Its ``repr`` is Python, to be kept in a plugin.

    Attributes:
        served: functions and classes that torch itself serves for the device, by the names of a vendor's module.
        pins: whether torch page-locks host memory for the device.
        claims: capabilities that it was seen to have.
        lenient: functions of the module that answer for a device that does not exist.
        counting_initialises: whether to ask how many devices there are is to initialise them.
        inert: hooks whose functions are there, and do not what they should.
    """

    served: frozenset[str] = frozenset()
    pins: bool = False
    claims: frozenset[str] = frozenset()
    lenient: frozenset[str] = frozenset()
    counting_initialises: bool = False
    inert: frozenset[str] = frozenset()

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

    Nothing, with a warning, if another process was asked and failed or did not answer in time.
    """
    initialised = getattr(getattr(torch, device_type, None), "is_initialized", None)
    package = package_of(device_type)
    if not callable(initialised) or initialised() or (package is None and not hasattr(os, "fork")):
        return look()
    try:
        seen = ask_in_child(lambda: plain(look())) if package is None else try_elsewhere(device_type, package)
    except RuntimeError as error:
        warnings.warn(
            f"torch.{device_type} was tried in another process, and nothing is known of it: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return NOTHING
    told = cast("dict[str, list[str] | bool]", seen)
    return Findings(**{name: _set(value) for name, value in told.items()})  # type: ignore[arg-type]  # as plain wrote


def plain(findings: Findings) -> dict[str, object]:
    """The findings as JSON can carry them."""
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in asdict(findings).items()
    }


def _set(value: list[str] | bool) -> frozenset[str] | bool:
    return frozenset(value) if isinstance(value, list) else value
