"""Which lines of a file can hold a finding, so that the others need not be looked at."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from itertools import accumulate


class Marks:
    """The lines that contain a telltale word, or an alias of one."""

    def __init__(self, text: str, pattern: re.Pattern[str], aliases: Iterable[str] = ()) -> None:
        names = "|".join(map(re.escape, aliases))
        extra = re.compile(rf"\b(?:{names})\b") if names else None
        marked = (
            pattern.search(line) is not None or (extra is not None and extra.search(line) is not None)
            for line in text.split("\n")
        )
        self._before = [0, *accumulate(marked)]

    def within(self, node: ast.AST) -> bool:
        """Whether a statement or definition, its decorators included, has a marked line."""
        first: int = node.lineno  # type: ignore[attr-defined]  # a statement
        for decorator in getattr(node, "decorator_list", ()):
            first = min(first, decorator.lineno)
        last: int = getattr(node, "end_lineno", None) or first
        return self._before[min(last, len(self._before) - 1)] > self._before[first - 1]
