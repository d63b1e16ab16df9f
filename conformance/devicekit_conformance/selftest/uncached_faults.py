"""Faults of a machine without a caching allocator."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from devicekit.contract.manifest import Manifest
from devicekit.testing import sim_backend
from devicekit_conformance.simulated import become

_MANIFEST = become("uncached")


class ClaimsACache(sim_backend.SimBackend):
    """A caching allocator is claimed where there is none."""

    caught_by = "DK-CACHE-004"
    manifest: ClassVar[Manifest] = replace(
        _MANIFEST, capabilities=_MANIFEST.capabilities | {"caching_allocator"}
    )
