"""What can be learnt about an installation without importing torch or any plugin."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence

from devicekit import __version__
from devicekit.contract.environment import check_environment, shown
from devicekit.contract.errors import ConfigurationError
from devicekit.contract.versions import CONTRACT_VERSION, range_text
from devicekit.devtools.doctor.examine import AUTOLOAD_GROUP
from devicekit.registry.availability import availability, hardware_signs
from devicekit.registry.candidates import Candidate
from devicekit.registry.installed import entries, installed_version, printable
from devicekit.registry.probing import probe_timeout
from devicekit.registry.request import requested_by_environment
from devicekit.registry.requirements import is_allowed

_PACKAGES = ("torch", "pluggy", "packaging", "numpy", "transformers", "safetensors", "rich")
_PREFIXES = ("DEVICEKIT_", "TORCH_", "PYTORCH_")


def system() -> Mapping[str, str]:
    """Interpreter, operating system, and our own versions."""
    return {
        "devicekit": __version__,
        "contract": str(CONTRACT_VERSION),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
    }


def packages() -> Mapping[str, str | None]:
    """Versions of what devicekit works with; ``None`` where it is not installed."""
    return {name: installed_version(name) for name in _PACKAGES}


def settings(candidates: Sequence[Candidate]) -> Mapping[str, str]:
    """Environment variables that matter: ours, torch's, and those by which backends limit visible devices."""
    visible = {one.manifest.visible_devices_variable for one in candidates if one.manifest is not None}
    return {
        name: printable(shown(name, value))
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES) or name in visible
    }


def wrong_setting() -> str | None:
    """What is wrong with the ``DEVICEKIT_*`` variables, if anything is."""
    try:
        check_environment(os.environ)
        probe_timeout()
        requested_by_environment()
    except ConfigurationError as error:
        return str(error)
    return None


def autoload_entries() -> Sequence[tuple[str, str]]:
    """Name and distribution of each extension that torch loads when it is imported."""
    return [(entry.name, entry.distribution) for entry in entries(AUTOLOAD_GROUP) if entry.problem is None]


def broken_extensions() -> Sequence[tuple[str, str]]:
    """Distribution and fault of each extension of torch's whose metadata is broken: ``import torch`` reads it."""
    return [
        (entry.distribution, entry.problem) for entry in entries(AUTOLOAD_GROUP) if entry.problem is not None
    ]


def describe(candidate: Candidate) -> dict[str, object]:
    """A backend as its manifest describes it."""
    manifest = candidate.manifest
    return {
        "name": candidate.name,
        "distribution": candidate.distribution,
        "version": candidate.version,
        "device_type": manifest.device_type if manifest else None,
        "contract": range_text(manifest.contract) if manifest else None,
        "host": manifest.host if manifest else None,
        "automatic": manifest.automatic if manifest else None,
        "requires": {str(one): installed_version(one.name) for one in manifest.requires} if manifest else {},
        "hardware_signs": hardware_signs(manifest) if manifest else [],
        "problem": str(candidate.error) if candidate.error else None,
    }


def left_out(candidate: Candidate) -> str | None:
    """Why a sound backend is not used although it is installed, where somebody wanted it so."""
    if not is_allowed(candidate):
        return "DEVICEKIT_ALLOWED_DISTRIBUTIONS does not list its distribution"
    return None


def absent(candidate: Candidate) -> str | None:
    """Why a backend can find nothing here: no sign of its hardware, and its vendor's package is not installed."""
    here = availability(candidate)
    unmet = here.usable is False and here.signs == () and not here.importable
    return here.reason if unmet else None
