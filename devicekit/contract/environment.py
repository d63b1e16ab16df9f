"""The environment variables that devicekit reads, in one list, so that a misspelt one is an error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType

from devicekit.contract import text
from devicekit.contract.errors import ConfigurationError

PREFIX = "DEVICEKIT_"

_RELEASE_POINTS = {
    "FLUSH": "after a flush",
    "WEIGHT_UPDATE": "after a weight update",
    "CONTINUE": "before generation continues after a pause",
    "IDLE": "while nothing is going on",
    "OUT_OF_MEMORY": "after a request ran out of memory",
    "REQUEST_FAILED": "after a request failed for any other reason than memory",
    "COMPONENT": "after a large component was released",
    "MEMORY_OCCUPATION": "after memory occupation was released",
    "AVAILABLE_MEMORY": "before available memory is asked for",
}

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "DEVICEKIT_BACKEND": "backend to use when none is named in code, for example 'npu' or 'npu:1'",
        "DEVICEKIT_POLICY": "what a failing plugin does to selection: 'strict', 'matching' or 'lenient'",
        "DEVICEKIT_ADMIN_API_KEY": "key that a server's control endpoints demand; never shown",
        "DEVICEKIT_API_KEY": "key that a server demands; never shown",
        "DEVICEKIT_ALLOWED_DISTRIBUTIONS": "comma-separated distributions whose backends may be imported",
        "DEVICEKIT_BASELINE_TOLERANCES": "how far runs may exceed a baseline, such as 'step=0.3+20ms'",
        "DEVICEKIT_BASELINE_TOLERANCES_FILE": "TOML file whose [tolerances] table says the same, stage by stage",
        "DEVICEKIT_PROBE_TIMEOUT": "seconds that a plugin's is_available() and device_count() may take",
        "DEVICEKIT_RELEASE_FILE": "TOML file whose [release] table sets release points",
        "DEVICEKIT_RELEASE_DRY_RUN": "'yes': record what release points would give back, and empty nothing",
        **{
            f"DEVICEKIT_RELEASE_{point}": f"when the allocator's cache is emptied {when}: 'always', 'never', "
            "'on_request:yes', 'on_request:no', 'interval:SECONDS' or 'when_reclaimable:SIZE'"
            for point, when in _RELEASE_POINTS.items()
        },
    }
)

VARIABLES_OF_OTHERS: Mapping[str, str] = MappingProxyType(
    {
        "RANK": "torchrun: which of the processes of one engine this is",
        "WORLD_SIZE": "torchrun: how many there are",
        "LOCAL_RANK": "torchrun: which of those on this machine this is",
        "MASTER_ADDR": "torchrun: where the processes meet",
        "MASTER_PORT": "torchrun: where the processes meet",
        "PYTHONPATH": "Python: where modules of child processes are found",
        "XDG_CACHE_HOME": "the desktop: where caches of a user are kept",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "torch: whether importing it loads vendors' extensions",
    }
)
"""What is read besides, and belongs to others, who check it."""

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")

# Distributions that build on devicekit keep variables of their own, and check those themselves.
FOREIGN_PREFIXES = ("DEVICEKIT_CONFORMANCE_",)


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` for any ``DEVICEKIT_*`` variable that does not exist."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in VARIABLES and not name.startswith(FOREIGN_PREFIXES):
            near = difflib.get_close_matches(name[:200], VARIABLES, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(sorted(VARIABLES))}."
            raise ConfigurationError(f"The environment variable {_plain(name)} does not exist.{hint}")


def shown(name: str, value: str) -> str:
    """A variable's value as it may be printed: not if its name says that it is a secret, however it is spelt."""
    return "(set; not shown)" if _SECRET.search(name.upper()) else value


def _plain(name: str) -> str:
    return name if name.isascii() and name.isprintable() and len(name) < 100 else text.shown(name)
