"""The contract's version, and which plugin ranges this host can serve."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

CONTRACT_VERSION = Version("1.1")
"""The contract that this devicekit speaks; see `negotiate` for the older ones that it serves."""

# Newest first: within a major version every minor is served, for good.
SERVED_CONTRACTS: tuple[Version, ...] = tuple(
    Version(f"{CONTRACT_VERSION.major}.{minor}") for minor in range(CONTRACT_VERSION.minor, -1, -1)
)
_MINORS_AHEAD = 100  # how far a range is followed to see whether it reaches beyond this host


def range_text(versions: SpecifierSet) -> str:
    """A range of versions, the lower bound first: ``>=1.0,<2``."""
    return ",".join(sorted(map(str, versions), reverse=True))


def negotiate(accepted: SpecifierSet) -> tuple[Version, ...]:
    """The contracts that both sides speak, newest first; empty if there is none.

    A plugin whose range reaches back to an older contract may have been written against that one, so it is held
    to what the oldest of these demands.
    """
    return tuple(version for version in SERVED_CONTRACTS if accepted.contains(version, prereleases=True))


def reaches_beyond(accepted: SpecifierSet) -> bool:
    """Whether a plugin with this range may have been written for a newer contract of this major version."""
    major, minor = CONTRACT_VERSION.major, CONTRACT_VERSION.minor
    ahead = (Version(f"{major}.{one}") for one in range(minor + 1, minor + 1 + _MINORS_AHEAD))
    return any(accepted.contains(version, prereleases=True) for version in ahead)
