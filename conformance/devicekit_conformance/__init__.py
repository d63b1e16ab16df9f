"""Proves by effect that a devicekit backend keeps the device contract.

::

    devicekit conformance run --backend acme --report out/
    pytest --pyargs devicekit_conformance --backend acme

or, in a vendor's own test file::

    from devicekit.conformance import BackendConformance

    class TestAcme(BackendConformance):
        backend = "acme"

Importing this package imports neither torch, nor devicekit, nor pytest; names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit_conformance.case import BackendConformance
    from devicekit_conformance.outcomes import Level, Result, Status, Verdict
    from devicekit_conformance.rulebook import Requirement, requirement
    from devicekit_conformance.session import Session
    from devicekit_conformance.target import Target

__version__ = "0.1.0"

__all__ = [
    "BackendConformance",
    "Level",
    "Requirement",
    "Result",
    "Session",
    "Status",
    "Target",
    "Verdict",
    "requirement",
]

_HOME_OF = {
    "BackendConformance": "case",
    "Level": "outcomes",
    "Requirement": "rulebook",
    "Result": "outcomes",
    "Session": "session",
    "Status": "outcomes",
    "Target": "target",
    "Verdict": "outcomes",
    "requirement": "rulebook",
}


def __getattr__(name: str) -> object:
    if (home := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module 'devicekit_conformance' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"devicekit_conformance.{home}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
