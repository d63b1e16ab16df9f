"""From an installed wheel to a checked backend: discovery, loading, selection.

Finding what is installed needs the first of them alone: the others are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.front_door import front_door
from devicekit.registry.candidates import Candidate, Stage, register_backend, unregister_backend
from devicekit.registry.discovery import ENTRY_POINT_GROUP, discover

if TYPE_CHECKING:
    from devicekit.registry.loading import load
    from devicekit.registry.opened import OpenedBackend
    from devicekit.registry.selection import CandidateReport, Policy, Selection, Verdict, select

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

__getattr__, __dir__ = front_door(
    __name__,
    {
        "devicekit.registry.loading": ("load",),
        "devicekit.registry.opened": ("OpenedBackend",),
        "devicekit.registry.selection": ("CandidateReport", "Policy", "Selection", "Verdict", "select"),
    },
)
