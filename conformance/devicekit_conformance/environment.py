"""The environment as it was before any plugin could touch it, for the processes in which plugins are tried."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

_TELLTALE = ("PYTEST_", "DEVICEKIT_CONFORMANCE_")  # a plugin must not be able to tell that it is being judged
_OVERRIDES = ("DEVICEKIT_BACKEND", "DEVICEKIT_POLICY")  # a choice made for engines is none for the suite

# Taken when this module is first imported, which is before any backend is.
PRISTINE: Mapping[str, str] = MappingProxyType(
    {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_TELLTALE) and name not in _OVERRIDES
    }
)
