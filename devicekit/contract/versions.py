"""The contract's version, and which plugin ranges this host can serve."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

CONTRACT_VERSION = Version("1.0")

# Newest first. The host serves its own contract and the one before it; 1.0 is the first there is.
SERVED_CONTRACTS: tuple[Version, ...] = (CONTRACT_VERSION,)


def negotiate(accepted: SpecifierSet) -> Version | None:
    """The newest contract that both sides speak, or ``None``."""
    for version in SERVED_CONTRACTS:
        if accepted.contains(version, prereleases=True):
            return version
    return None
