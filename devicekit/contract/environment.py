"""The environment variables devicekit reads, in one list, so that a misspelt one is an error and not a shrug."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from devicekit.contract.errors import ConfigurationError

PREFIX = "DEVICEKIT_"

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "DEVICEKIT_BACKEND": "backend to use when none is named in code, for example 'npu' or 'npu:1'",
        "DEVICEKIT_POLICY": "what a failing plugin does to selection: 'strict', 'matching' or 'lenient'",
        "DEVICEKIT_ALLOWED_DISTRIBUTIONS": "comma-separated distributions whose backends may be imported",
        "DEVICEKIT_PROBE_TIMEOUT": "seconds that a plugin's is_available() and device_count() may take",
    }
)

# Distributions that build on devicekit keep variables of their own, and check those themselves.
FOREIGN_PREFIXES = ("DEVICEKIT_CONFORMANCE_",)


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` for any ``DEVICEKIT_*`` variable that does not exist."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in VARIABLES and not name.startswith(FOREIGN_PREFIXES):
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(sorted(VARIABLES))}."
            raise ConfigurationError(f"The environment variable {name} does not exist.{hint}")
