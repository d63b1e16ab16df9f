"""Puts values of any size and shape into messages: printable, and of bounded length."""

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
