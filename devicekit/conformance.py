"""The conformance suite's class for vendors' own tests: ``from devicekit.conformance import BackendConformance``.

The suite is a distribution of its own, so that an engine's environment never carries pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit_conformance import BackendConformance as BackendConformance

_SUITE = "devicekit_conformance"


def __getattr__(name: str) -> object:
    if name.startswith("__"):  # the import system's own questions need no suite
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        suite = importlib.import_module(_SUITE)
    except ModuleNotFoundError as error:
        if error.name != _SUITE:
            raise
        raise ModuleNotFoundError(
            "devicekit.conformance needs the suite: pip install 'devicekit[conformance]'", name=_SUITE
        ) from None
    found: object = getattr(suite, name)
    return found
