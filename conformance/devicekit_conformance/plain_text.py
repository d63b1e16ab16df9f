"""Text from a backend made safe to store, print and read: bounded, printable, and never an exception itself."""

from __future__ import annotations

LIMIT = 2000  # characters of one message; what is longer is cut, and its length told


def plain(text: object, limit: int = LIMIT) -> str:
    """``text`` as valid, printable Unicode of at most about ``limit`` characters.

    Control characters, lone surrogates and bidirectional marks are written as escapes; line ends and tabs stay.
    """
    whole = text if type(text) is str else str(text)
    cut = whole[:limit]
    safe = "".join(one if one in "\n\t" or one.isprintable() else _escaped(one) for one in cut)
    return safe if len(whole) <= limit else f"{safe} … ({len(whole):,} characters)"


def told(error: BaseException, limit: int = LIMIT) -> str:
    """``TypeName: message`` of an exception, whatever its class does when it is asked."""
    try:
        name = plain(type.__getattribute__(type(error), "__name__"), 200)
    except BaseException:
        name = "an exception whose class has no name"
    try:
        message = plain(str(error), limit)
    except BaseException as second:
        message = f"<its text cannot be had: {_class_name(second)}>"
    return f"{name}: {message}" if message else name


def _class_name(error: BaseException) -> str:
    name = type(error).__name__
    return plain(name, 200) if isinstance(name, str) else "unknown"


def _escaped(one: str) -> str:
    code = ord(one)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
