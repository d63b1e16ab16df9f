"""From an installed wheel to a checked backend: discovery, loading, selection.

Finding what is installed needs the first of them alone: the others are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from devicekit.registry.candidates import Candidate, register_backend, unregister_backend
from devicekit.registry.discovery import ENTRY_POINT_GROUP, discover

if TYPE_CHECKING:
    from devicekit.registry.loading import load
    from devicekit.registry.opened import OpenedBackend
    from devicekit.registry.selection import CandidateReport, Policy, Selection, Verdict, select
    from devicekit.registry.stages import Stage

__all__ = [
    "ENTRY_POINT_GROUP",
    "Candidate",
    "CandidateReport",
    "OpenedBackend",
    "Policy",
    "Selection",
    "Stage",
    "Verdict",
    "discover",
    "load",
    "register_backend",
    "select",
    "unregister_backend",
]

_HOME_OF = {
    "CandidateReport": "selection",
    "OpenedBackend": "opened",
    "Policy": "selection",
    "Selection": "selection",
    "Stage": "stages",
    "Verdict": "selection",
    "load": "loading",
    "select": "selection",
}


def __getattr__(name: str) -> object:
    if (home := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module 'devicekit.registry' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"devicekit.registry.{home}"), name)
    globals()[name] = found
    return found
