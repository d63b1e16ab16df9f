"""Which lines of a file can hold a finding, so that the others need not be looked at."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

from devicekit.devtools.audit.words import Telltale


class Marks:
    """The lines that contain a telltale word, or an alias of one."""

    def __init__(self, text: str, telltale: Telltale, aliases: Iterable[str] = ()) -> None:
        names = "|".join(map(re.escape, aliases))
        extra = re.compile(rf"\b(?:{names})\b") if names else None
        marked = (
            telltale.within(line) or (extra is not None and extra.search(line) is not None)
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

    def walk(self, tree: ast.AST) -> Iterator[ast.AST]:
        """Every node below ``tree`` but those of statements without a marked line."""
        left = [tree]
        while left:
            node = left.pop()
            yield node
            left += (
                one for one in ast.iter_child_nodes(node) if not isinstance(one, ast.stmt) or self.within(one)
            )
