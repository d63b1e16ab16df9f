"""How users name a device: ``"npu"`` or ``"npu:1"``, in code or in ``DEVICEKIT_BACKEND``."""

from __future__ import annotations

import os
import re

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown

_REQUEST = re.compile(r"(?P<name>[a-z_][a-z0-9_]{0,99})(?::(?P<index>[0-9]{1,6}))?")


def parse_request(text: str) -> tuple[str, int | None]:
    """Split ``"npu:1"`` into ``("npu", 1)`` and ``"npu"`` into ``("npu", None)``. Case does not matter.

    Raises:
        ConfigurationError: the text is neither.
    """
    matched = _REQUEST.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    if matched is None:
        raise ConfigurationError(
            f"A device is written 'backend' or 'backend:index', as in 'npu:1', not {shown(text)}."
        )
    index = matched["index"]
    return matched["name"], None if index is None else int(index)


def requested_by_environment() -> str | None:
    """``DEVICEKIT_BACKEND``, or ``None`` when it is unset or empty.

    Raises:
        ConfigurationError: its value names no device; the text names the variable.
    """
    text = os.environ.get("DEVICEKIT_BACKEND") or None
    if text is not None:
        try:
            parse_request(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"DEVICEKIT_BACKEND: {error}") from None
    return text
