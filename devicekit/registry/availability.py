"""Whether an installed backend can be used on this machine, as far as that shows without importing it."""

from __future__ import annotations

import glob
from dataclasses import dataclass

from devicekit.contract.errors import IncompatibleBackend
from devicekit.contract.manifest import Manifest
from devicekit.registry.candidates import Candidate
from devicekit.registry.requirements import check_requirements, is_allowed


@dataclass(frozen=True, slots=True)
class Availability:
    """What manifest, metadata and the machine's files tell of a backend."""

    usable: bool | None  # None: only the backend itself can tell
    reason: str  # in a few words
    signs: tuple[str, ...] | None = None  # paths that show its hardware; None: it names none
    importable: bool = True  # nothing that it requires is missing


def availability(candidate: Candidate) -> Availability:
    """Judge a candidate by what can be read. Imports neither torch nor the plugin."""
    manifest = candidate.manifest
    if candidate.error is not None or manifest is None:
        return Availability(False, "broken")
    signs = tuple(hardware_signs(manifest)) if manifest.hardware else None
    if not is_allowed(candidate):
        return Availability(False, "not allowed", signs)
    try:
        check_requirements(candidate)
    except IncompatibleBackend as error:
        if signs == ():
            return Availability(False, "no sign of its hardware, nor of its vendor's package", signs, False)
        return Availability(False, "; ".join(error.problems) or str(error), signs, False)
    if manifest.host:
        return Availability(True, "the host's processor", signs)
    if signs == ():
        return Availability(False, "no sign of its hardware", signs)
    if signs is None:
        return Availability(None, "says nothing of its hardware", signs)
    return Availability(None, f"sign of its hardware: {signs[0]}", signs)


def hardware_signs(manifest: Manifest) -> list[str]:
    """Paths of this machine that the manifest names as signs of the hardware."""
    return sorted(path for pattern in manifest.hardware for path in glob.glob(pattern))


def hardware_seen(manifest: Manifest | None) -> bool:
    """Whether the machine shows signs of the hardware, judged without the plugin.

    A manifest that is unreadable or names no sign leaves the question open, and open counts as present: a
    backend that somebody installed is not to be passed over in silence.
    """
    if manifest is None or manifest.host or not manifest.hardware:
        return True
    return bool(hardware_signs(manifest))
