"""The list of what an engine sends to a device, one operator with one kind of arguments a line."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("sent.json")


@dataclass(frozen=True)
class Sent:
    """One operator as an engine calls it.

    Attributes:
        operator: torch's name with the overload, such as ``aten.add.Tensor``.
        arguments: positional ones. A tensor is a mapping with ``dtype``, ``shape``, ``strides`` (where it is not
            contiguous), and for whole numbers ``low``, ``high`` and ``distinct``; anything else stands as it is.
        keywords: the same, by name.
    """

    operator: str
    arguments: tuple[object, ...]
    keywords: Mapping[str, object]

    def as_data(self) -> list[object]:
        return [self.operator, list(self.arguments), dict(self.keywords)]


@functools.cache
def sent() -> tuple[Sent, ...]:
    """Every line of the committed list."""
    rows = json.loads(LIST.read_text(encoding="utf-8"))
    return tuple(Sent(name, tuple(arguments), keywords) for name, arguments, keywords in rows)
