"""The contract's version, and which plugin ranges this host can serve."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

CONTRACT_VERSION = Version("1.0")

# Newest first. The host serves its own contract and the one before it; 1.0 is the first there is.
SERVED_CONTRACTS: tuple[Version, ...] = (CONTRACT_VERSION,)


def negotiate(accepted: SpecifierSet) -> tuple[Version, ...]:
    """The contracts that both sides speak, newest first; empty if there is none.

    A plugin whose range reaches back to an older contract may have been written against that one, so it is held
    to what the oldest of these demands.
    """
    return tuple(version for version in SERVED_CONTRACTS if accepted.contains(version, prereleases=True))
