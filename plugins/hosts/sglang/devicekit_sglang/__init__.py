"""SGLang on any device that devicekit opens: ``SGLANG_PLATFORM=devicekit``.

Installing this package changes nothing: without that variable SGLang's own choice stands.
"""

from __future__ import annotations

import os

__all__ = ["activate"]


def activate() -> str | None:
    """What SGLang's discovery calls: the platform's class if the user asked for it by name, else ``None``."""
    if os.environ.get("SGLANG_PLATFORM") != "devicekit":
        return None
    return "devicekit_sglang.platform.DevicekitPlatform"
