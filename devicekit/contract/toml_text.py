"""TOML that others wrote, parsed in bounded time: whatever is wrong with it is a ``ValueError``."""

from __future__ import annotations

import sys
from collections.abc import Mapping

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A key of n parts takes the parser n² steps, and makes tables n deep. No key in use has ten.
_MOST_DOTS = 256


class NestedTooDeeply(ValueError):
    """Tables or lists in one another, deeper than Python can go."""


def parse_toml(text: str) -> Mapping[str, object]:
    """The document.

    Raises:
        NestedTooDeeply: it is.
        ValueError: it is no TOML, or holds a key or a number that nobody needs.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > _MOST_DOTS:
            raise NestedTooDeeply(f"line {number} has more than {_MOST_DOTS} dots")
    try:
        document: Mapping[str, object] = tomllib.loads(text.replace("\r\n", "\n"))
        return document
    except RecursionError as error:
        raise NestedTooDeeply("it is nested too deeply") from error
