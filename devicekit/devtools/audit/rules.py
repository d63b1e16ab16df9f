"""The rules of the audit, applied to one file's syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from devicekit.devtools.audit import words


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that portable code does not do."""

    id: str
    title: str
    instead: str  # what to write


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.id: rule
        for rule in (
            Rule("DK000", "file cannot be parsed", "fix the syntax error: nothing in the file was audited"),
            Rule("DK001", "vendor module", "a method of devicekit.Device"),
            Rule(
                "DK002", "vendor device literal", "device.torch_device, or leave the choice to get_device()"
            ),
            Rule("DK003", "move to a vendor's device", "tensor.to(device.torch_device)"),
            Rule(
                "DK004",
                "branch on a vendor",
                "device.supports(hook), or the record that answers the question",
            ),
            Rule("DK005", "vendor collective", "device.collective_backend()"),
            Rule("DK006", "vendor visible-devices variable", "device.visible_devices_variable()"),
            Rule("DK007", "vendor package", "a hook of the backend's plugin"),
        )
    }
)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where code names a vendor."""

    path: str
    line: int  # from 1
    column: int  # from 1
    rule: str
    what: str  # the offending expression
    source: str  # its line, stripped


def findings_in(text: str, path: str) -> list[Finding]:
    """Every finding in a file's text, in order; waivers are not considered here."""
    try:
        tree = ast.parse(text, path)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return [Finding(path, line, 1, "DK000", str(error), "")]
    visitor = _Visitor(path, text.splitlines())
    visitor.visit(tree)
    return sorted(visitor.findings)


class _Visitor(ast.NodeVisitor):
    """Walks outside in: an expression that is reported as a whole is not reported again in parts."""

    def __init__(self, path: str, lines: list[str]) -> None:
        self.findings: list[Finding] = []
        self._path = path
        self._lines = lines

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._check_module(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is None or node.level:
            return
        if self._check_module(node, node.module):
            return
        for alias in node.names:
            self._check_module(node, f"{node.module}.{alias.name}")

    def visit_Expr(self, node: ast.Expr) -> None:
        if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):  # a docstring
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if (path := _dotted(node)) is not None and (rule := _module_rule(path)) is not None:
            self._report(node, rule, path)
        elif words.is_question(node.attr):
            self._report(node, "DK004", _short(node))
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and words.is_question(node.id):
            self._report(node, "DK004", node.id)

    def visit_Compare(self, node: ast.Compare) -> None:
        if any(_names_device(part) for part in (node.left, *node.comparators)):
            self._report(node, "DK004", _short(node))
        else:
            self.generic_visit(node)

    def visit_match_case(self, node: ast.match_case) -> None:
        for part in ast.walk(node.pattern):
            if isinstance(part, ast.MatchValue) and _names_device(part.value):
                self._report(part, "DK004", f"case {_short(part.value)}")
        for child in (node.guard, *node.body):
            if child is not None:
                self.visit(child)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        literals = any(_names_device(part) for part in (*node.args, *(one.value for one in node.keywords)))
        if (name in words.DEVICES and not _is_torch(node.func)) or (name == "to" and literals):
            self._report(node, "DK003", _short(node))
        elif name in ("startswith", "endswith") and literals:
            self._report(node, "DK004", _short(node))
        elif _dotted(node.func) in ("getattr", "hasattr") and literals:
            self._report(node, "DK001", _short(node))
        else:
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            return
        if words.is_device(node.value):
            self._report(node, "DK002", repr(node.value))
        elif node.value in words.COLLECTIVES:
            self._report(node, "DK005", repr(node.value))
        elif words.VISIBLE.fullmatch(node.value):
            self._report(node, "DK006", repr(node.value))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        if _names_device(node):
            self._report(node, "DK002", _short(node))
        else:
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    self.visit(part)

    def _check_module(self, node: ast.stmt, module: str) -> bool:
        rule = _module_rule(module)
        if rule is not None:
            self._report(node, rule, module)
        return rule is not None

    def _report(self, node: ast.AST, rule: str, what: str) -> None:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        source = self._lines[line - 1].strip() if line <= len(self._lines) else ""
        self.findings.append(Finding(self._path, line, column + 1, rule, what, source))


def _module_rule(path: str) -> str | None:
    """The rule that a dotted path breaks, if it does."""
    first, *rest = path.split(".")
    if first in words.PACKAGES:
        return "DK007"
    if first != "torch" or not rest:
        return None
    if rest[0] in words.DEVICES:
        return "DK001"
    inner = rest[1] if len(rest) > 1 else ""
    if rest[0] == "version" and inner in words.VERSIONS:
        return "DK004"
    return "DK001" if rest[0] == "backends" and inner in words.BACKENDS else None


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def _is_torch(node: ast.expr) -> bool:
    return (_dotted(node) or "").startswith("torch.")


def _names_device(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and words.is_device(node.value)
    if isinstance(node, ast.JoinedStr):
        return (
            bool(node.values) and isinstance(node.values[0], ast.Constant) and _names_device(node.values[0])
        )
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(map(_names_device, node.elts))
    if isinstance(node, ast.Call) and _dotted(node.func) in ("torch.device", "device"):
        return any(map(_names_device, node.args))
    return False


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
