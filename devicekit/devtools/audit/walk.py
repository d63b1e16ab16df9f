"""Walks one file's syntax tree and knows at each expression where it stands."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from devicekit.devtools.audit import words
from devicekit.devtools.audit.compilers import compiles
from devicekit.devtools.audit.early import called_on_import
from devicekit.devtools.audit.fixes import Editor
from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.names import Names, annotations_of, defaults_of
from devicekit.devtools.audit.place import Place
from devicekit.devtools.audit.roles import expects
from devicekit.devtools.audit.syntax import (
    assigned_name,
    catches_error,
    expects_error,
    imports_apart,
    is_main_block,
    is_own,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAVES = (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)


class Walker(ast.NodeVisitor):
    """Visits what can hold a finding, outside in, and keeps `_place` as it goes."""

    def __init__(self, path: str, tree: ast.Module, names: Names, marks: Marks, editor: Editor) -> None:
        self._tree = tree
        self._names = names
        self._marks = marks
        self._editor = editor
        self._place = Place(names.module, apart=words.is_apart(path))
        self._apart: set[ast.Lambda] = set()  # of a row for one vendor: Row("xpu", lambda: ...)

    def visit_body(self, nodes: Sequence[ast.stmt]) -> None:
        """The statements of a block, which is one vendor's if it imports a package of that vendor."""
        apart = self._place.apart or any(map(imports_apart, nodes))
        with self._at(apart=apart):
            self.visit_statements(nodes)

    def visit_statements(self, nodes: Sequence[ast.stmt]) -> None:
        """Statements one after the other, each known with those that follow it."""
        for number, node in enumerate(nodes):
            if self._marks.within(node):
                self._editor.follow(node, nodes[number + 1 :])
                self.visit(node)

    @cached_property
    def _early(self) -> set[ast.AST]:
        return called_on_import(self._tree)

    @contextmanager
    def _at(self, **changed: object) -> Iterator[None]:
        before = self._place
        self._place = replace(before, **changed)  # type: ignore[arg-type]  # its own fields
        try:
            yield
        finally:
            self._place = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_decorators(node.decorator_list)
        with self._at(frozen=True):
            for part in (*node.bases, *(one.value for one in node.keywords)):
                self.visit(part)
        with self._at(scope=self._names.scope(node), **self._of(node.name)):
            self.visit_body(node.body)

    def _of(self, name: str) -> dict[str, bool]:
        """What the name of a class or function says of what it holds."""
        return {
            "named": self._place.named or bool(words.vendors_in(name)),
            "apart": self._place.apart or words.is_apart(name),
        }

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_decorators(node.decorator_list)
        with self._at(frozen=True):
            for part in defaults_of(node.args):
                self.visit(part)
        compiled = any(compiles(one, self._names, self._place.scope) for one in node.decorator_list)
        device = self._editor.device_parameter(node, self._place.scope) or self._place.device
        self._editor.calls.follow_graphs(node, self._names.scope(node))
        with self._at(compiled=self._place.compiled or compiled, **self._of(node.name)):
            for annotation in annotations_of(node.args):
                self._visit_annotation(annotation)
            self._visit_annotation(node.returns)
            runs = node not in self._early
            with self._at(scope=self._names.scope(node), runs=runs, caught=False, device=device):
                self.visit_body(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def _visit_decorators(self, nodes: Sequence[ast.expr]) -> None:
        """What a decorator is given is evaluated where the definition stands; a compiler's is its own."""
        for one in nodes:
            with self._at(frozen=self._place.frozen or compiles(one, self._names, self._place.scope)):
                self.visit(one)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        with self._at(frozen=True):
            for part in defaults_of(node.args):
                self.visit(part)
        apart = self._place.apart or node in self._apart
        with self._at(scope=self._names.scope(node), runs=True, caught=False, apart=apart):
            self.visit(node.body)

    def _visit_annotation(self, node: ast.expr | None) -> None:
        if node is not None:
            with self._at(annotation=True):
                self.visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_annotation(node.annotation)
        self.visit(node.target)
        if node.value is not None:
            self._visit_value(node.value, [node.target])

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.visit(target)
        self._visit_value(node.value, node.targets)

    def _visit_value(self, node: ast.expr, targets: Sequence[ast.expr]) -> None:
        name = assigned_name(targets)
        others = any(isinstance(one, ast.Attribute) and not is_own(one.value) for one in targets)
        with self._at(assigned=name, told=others or expects(name)):
            self.visit(node)

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        switched, caught = self._place.switched, self._place.caught
        for item in node.items:
            self._editor.calls.enter(item.context_expr)
            self.generic_visit(item)
            switched = switched or self._editor.switches(item.context_expr, self._place.scope)
            caught = caught or expects_error(item.context_expr)
        with self._at(switched=switched, caught=caught):
            self.visit_body(node.body)

    visit_AsyncWith = visit_With

    def visit_Try(self, node: ast.Try) -> None:
        with self._at(caught=self._place.caught or any(map(catches_error, node.handlers))):
            self.visit_body(node.body)
        for handler in node.handlers:
            self.visit(handler)
        self.visit_body(node.orelse)
        self.visit_body(node.finalbody)

    visit_TryStar = visit_Try

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        with self._at(runs=self._place.runs or is_main_block(node.test)):
            self.visit_body(node.body)
        self.visit_body(node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        with self._at(assigned=""):
            self.visit(node.test)
        with self._at(told=False):  # a choice is there to be used
            self.visit(node.body)
            self.visit(node.orelse)

    def generic_visit(self, node: ast.AST) -> None:
        if self._place.assigned and not isinstance(node, ast.BoolOp):
            with self._at(assigned="", told=False):
                self.generic_visit(node)
            return
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            self._editor.comprehend(node)
            with self._at(scope=self._names.scope(node)):
                super().generic_visit(node)
            return
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                if value and isinstance(value[0], ast.stmt):
                    self.visit_body(value)
                else:
                    for one in value:
                        if isinstance(one, ast.AST):
                            self.visit(one)
            elif isinstance(value, ast.AST) and not isinstance(value, _LEAVES):
                self.visit(value)
