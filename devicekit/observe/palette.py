"""The colours of a timeline's picture, for light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LIGHT: Mapping[str, str] = MappingProxyType(
    {
        "background": "#ffffff",
        "text": "#24292f",
        "grid": "#e4e7eb",
        "axis": "#8b949e",
        "allocated": "#1f6fc5",
        "reserved": "#c2630a",
        "free": "#5b7083",
        "verb": "#8250df",
        "release": "#0a7d47",
        "note": "#6e7781",
    }
)
DARK: Mapping[str, str] = MappingProxyType(
    {
        "background": "#12161c",
        "text": "#e6edf3",
        "grid": "#272e38",
        "axis": "#6e7681",
        "allocated": "#6cb0ff",
        "reserved": "#f0a04b",
        "free": "#9fb3c8",
        "verb": "#c297ff",
        "release": "#4cc38a",
        "note": "#a0a8b2",
    }
)
SHADE = 0.18  # how much of its colour an area shows over the background
