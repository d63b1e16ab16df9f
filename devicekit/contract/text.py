"""Puts values and amounts of any size into messages: printable, of bounded length, and for people."""

from __future__ import annotations

import reprlib

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 120


def shown(value: object) -> str:
    """``repr``, of bounded length, whatever the value is."""
    try:
        text = _short.repr(value)
    except Exception:  # an integer of more digits than Python prints, or an object whose repr raises
        return f"a {type(value).__name__}"
    return text.encode("utf-8", "backslashreplace").decode()


def counted(number: int, thing: str) -> str:
    """``1, "place"`` as ``1 place``; ``2, "place"`` as ``2 places``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def human_bytes(size: int | None) -> str:
    """``1536`` as ``1.5 KiB``; ``None`` as ``unknown``."""
    if size is None:
        return "unknown"
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """``0.00213`` as ``2.1 ms``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
