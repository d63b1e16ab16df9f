"""Fills the expression of a replacement with what a call gives."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from devicekit.devtools.audit.findings import Span

Part = str | Span
NEED_PARENTHESES = (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.GeneratorExp)


_ACTS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


def keeps_order(asked: Iterable[ast.expr], parts: Sequence[Part]) -> bool:
    """Whether what does something when it is evaluated is evaluated in the old order."""
    spans = [part for part in parts if not isinstance(part, str)]
    acts = any(isinstance(one, _ACTS) for node in asked for one in ast.walk(node))
    return not acts or spans == sorted(spans)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What stands for the names in an expression.

    Attributes:
        given: a call's arguments by the vendor's parameter names.
        device: the parts of the device's expression.
        torch: the name by which the file has torch.
        span: where an expression stands in the file.
    """

    given: dict[str, ast.expr]
    device: tuple[Part, ...]
    torch: str
    span: Callable[[ast.AST], Span]

    def parts(self, node: ast.expr) -> list[Part]:
        """The parts of the new code; an argument that the call does not give is left out."""
        if isinstance(node, ast.Name):
            if node.id in self.given:
                return [self.span(self.given[node.id])]
            return (
                list(self.device) if node.id == "device" else [self.torch if node.id == "torch" else node.id]
            )
        if isinstance(node, ast.Attribute):
            return [*self.parts(node.value), f".{node.attr}"]
        assert isinstance(node, ast.Call)
        parts = [*self.parts(node.func), "("]
        separator = ""
        arguments: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
        for one in arguments:
            value = one.value if isinstance(one, ast.keyword) else one
            if isinstance(value, ast.Name) and value.id not in self.given:
                continue
            parts.append(separator + (f"{one.arg}=" if isinstance(one, ast.keyword) else ""))
            loose = isinstance(value, ast.Name) and isinstance(self.given.get(value.id), NEED_PARENTHESES)
            parts += ["(", *self.parts(value), ")"] if loose else self.parts(value)
            separator = ", "
        return [*parts, ")"]
