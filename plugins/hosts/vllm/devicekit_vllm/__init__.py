"""vLLM on any device that devicekit opens: ``VLLM_PLUGINS=devicekit``.

Installing this package changes nothing: without that variable vLLM's own choice stands.
"""

from __future__ import annotations

import os

__all__ = ["activate"]


def activate() -> str | None:
    """What vLLM's discovery calls: the platform's class if the user asked for it by name, else ``None``."""
    named = os.environ.get("VLLM_PLUGINS", "")
    if "devicekit" not in [name.strip() for name in named.split(",")]:
        return None
    return "devicekit_vllm.platform.DevicekitPlatform"
