"""A file's text, and where its syntax stands in it."""

from __future__ import annotations

import ast

from devicekit.devtools.audit.findings import Span


class Source:
    """Positions in characters, which `ast` gives in bytes."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._ascii = text.isascii()

    def span(self, node: ast.AST) -> Span:
        """Where a node with a position begins and ends: lines from 1, columns from 0."""
        first = (node.lineno, self._column(node.lineno, node.col_offset))  # type: ignore[attr-defined]  # an expression
        last = (node.end_lineno, self._column(node.end_lineno, node.end_col_offset))  # type: ignore[attr-defined]
        return first, last

    def text_of(self, node: ast.AST) -> str:
        """A node as it is written."""
        (line, first), (last_line, last) = self.span(node)
        text = "\n".join(self._lines[line - 1 : last_line])
        return text[first : len(text) - len(self._lines[last_line - 1]) + last]

    def _column(self, line: int, offset: int) -> int:
        if self._ascii:
            return offset
        return len(self._lines[line - 1].encode()[:offset].decode(errors="replace"))
