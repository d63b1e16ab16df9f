"""From an installed wheel to a checked backend: discovery, loading, selection."""

from devicekit.registry.candidates import Candidate, register_backend, unregister_backend
from devicekit.registry.discovery import ENTRY_POINT_GROUP, discover
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
