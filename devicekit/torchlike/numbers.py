"""Takes whole numbers from a vendor's functions, which answer in numbers of other libraries, or not at all."""

from __future__ import annotations

import operator
from collections.abc import Mapping

_MOST = 1 << 63


def whole(value: object) -> int | None:
    """An amount as a plain int; ``None`` if it is no whole number from 0 on that fits into 63 bits.

    Libraries say "unknown" by -1, with a sign or without.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # whatever is no integer is refused there
    except (TypeError, ValueError):  # the second of a tensor of several elements
        return None
    return int(number) if not isinstance(value, bool) and 0 <= number < _MOST else None


def wholes(raw: Mapping[str, object], keys: Mapping[str, str]) -> dict[str, int | None]:
    """For each field the amount that its key has in ``raw``; ``None`` where it has none."""
    return {name: whole(raw.get(key)) for name, key in keys.items()}


def index_said(value: object, function: str) -> int:
    """An index or a count, without which nothing can be done.

    Raises:
        TypeError: it is none. The message names the ``function`` that answered it.
    """
    number = whole(value)
    if number is None:
        raise TypeError(f"{function}() answered {value!r}, which is no index and no count")
    return number
