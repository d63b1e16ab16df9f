"""How numbers look on a terminal."""

from __future__ import annotations


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
