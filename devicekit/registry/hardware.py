"""Signs of a backend's hardware, by files of this machine: nothing of the plugin is imported."""

from __future__ import annotations

import glob

from devicekit.contract.manifest import Manifest


def hardware_signs(manifest: Manifest) -> list[str]:
    """Paths of this machine that the manifest names as signs of the hardware."""
    return sorted(path for pattern in manifest.hardware for path in glob.glob(pattern))


def hardware_seen(manifest: Manifest | None) -> bool:
    """Whether the machine shows signs of the hardware, judged without the plugin.

    A manifest that is unreadable or names no sign leaves the question open, and open counts as present: a
    backend that somebody installed is not to be passed over in silence.
    """
    if manifest is None or manifest.host or not manifest.hardware:
        return True
    return bool(hardware_signs(manifest))
