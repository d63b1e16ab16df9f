"""A vendor's trap, with a name, the versions that have it, and a link: what a plugin works around or warns of."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

EMPTY_CACHE_IN_CAPTURE = "empty-cache-in-capture"
"""Name of the quirk of versions whose ``empty_cache`` fails while a graph is captured."""


@dataclass(frozen=True, slots=True)
class Quirk:
    """One trap. ``versions`` is a PEP 440 range of the vendor's package, empty for every version."""

    name: str
    sentence: str  # what happens, and what this backend does about it
    link: str  # the public report or documentation
    versions: str = ""

    def applies_to(self, version: str) -> bool:
        """Whether the vendor's ``version`` has the trap. A nightly or local build counts as its release."""
        return SpecifierSet(self.versions).contains(Version(Version(version).base_version), prereleases=True)


def applicable(quirks: Iterable[Quirk], version: str, without: Collection[str] = ()) -> tuple[Quirk, ...]:
    """The quirks that ``version`` has, less those switched off by name.

    Raises:
        ValueError: ``without`` names a quirk that does not exist.
    """
    known = tuple(quirks)
    if unknown := set(without) - {quirk.name for quirk in known}:
        raise ValueError(f"There is no quirk {', '.join(sorted(unknown))}.")
    return tuple(quirk for quirk in known if quirk.name not in without and quirk.applies_to(version))
