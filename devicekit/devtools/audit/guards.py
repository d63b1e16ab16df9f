"""When "is there an accelerator" may be asked in place of "is there this vendor's".

The question changes its answer on other vendors' devices. That is right only where everything that it guards was
rewritten too; a guard over code that still names a vendor stays as it is. So does one of several, each of which
asks for another vendor: the first would be true for all.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from devicekit.devtools.audit.findings import Edit
from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.names import Scope

_LEAVE = (ast.Return, ast.Raise, ast.Continue, ast.Break)


class Guards:
    """The questions of one file, and what each guards."""

    def __init__(self, tree: ast.Module, marks: Marks) -> None:
        self._tree = tree
        self._marks = marks
        self._questions: dict[ast.AST, object] = {}
        self._vendors: dict[object, set[str]] = defaultdict(set)
        self._rest: dict[ast.stmt, Sequence[ast.stmt]] = {}

    def follow(self, node: ast.stmt, rest: Sequence[ast.stmt]) -> None:
        """Note what comes after a statement that may decide whether it runs."""
        if isinstance(node, (ast.If, ast.Assert)):
            self._rest[node] = rest

    def ask(self, node: ast.AST, scope: Scope, about: str, vendor: str) -> None:
        """Note a question, of what in which scope it is asked, and for whom."""
        # A scope holds dictionaries and is the only one of its kind.
        self._questions[node] = (id(scope), about)
        self._vendors[id(scope), about].add(vendor)

    def settle(self, edits: Mapping[ast.AST, Edit], found: set[ast.AST]) -> dict[ast.AST, Edit]:
        """The edits, in which a question is safe only where all that it guards is.

        Args:
            edits: by the expression that they replace.
            found: every expression that names a vendor.
        """
        settled = dict(edits)
        open_questions = self._questions.keys() & settled.keys()
        if not open_questions:
            return settled
        regions = {question: region for question, region in self._regions() if question in open_questions}
        for question in sorted(open_questions, key=lambda node: settled[node].span, reverse=True):
            guarded = [
                settled.get(one)
                for part in regions.get(question, ())
                for one in ast.walk(part)
                if one in found and one is not question
            ]
            if not guarded or not all(edit is not None and edit.safe for edit in guarded):
                settled[question] = replace(settled[question], safe=False)
                if len(self._vendors[self._questions[question]]) > 1:
                    del settled[question]
        return settled

    def _regions(self) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
        """Each question that stands where it guards something, and that."""
        for node in self._marks.walk(self._tree):
            if isinstance(node, ast.If):
                yield from self._of_if(node)
            elif isinstance(node, ast.IfExp):
                for question, beside, positive in _asked(node.test):
                    yield question, [*beside, node.body if positive else node.orelse]
            elif isinstance(node, ast.Assert):
                for question, beside, positive in _asked(node.test):
                    if positive:
                        yield question, [*beside, *self._rest.get(node, ())]
            elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
                for number, value in enumerate(node.values):
                    yield value, list(node.values[number + 1 :])

    def _of_if(self, node: ast.If) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
        for question, beside, positive in _asked(node.test):
            if positive:
                yield question, [*beside, *node.body]
            elif node.orelse:
                yield question, [*beside, *node.orelse]
            elif isinstance(node.body[-1], _LEAVE) or _skips(node.body[-1]):
                yield question, [*beside, *self._rest.get(node, ())]


def _asked(test: ast.expr) -> Iterator[tuple[ast.expr, list[ast.AST], bool]]:
    """Each part of a test that decides, what is asked beside it, and whether it must hold."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield test.operand, [], False
    elif isinstance(test, ast.BoolOp):
        positive = isinstance(test.op, ast.And)
        for one in test.values:
            beside: list[ast.AST] = [other for other in test.values if other is not one]
            negated = isinstance(one, ast.UnaryOp) and isinstance(one.op, ast.Not)
            if positive != negated:
                yield (one.operand if isinstance(one, ast.UnaryOp) and negated else one), beside, positive
    else:
        yield test, [], True


def _skips(node: ast.stmt) -> bool:
    """Whether a statement ends a test or a program: ``pytest.skip(...)``, ``sys.exit()``."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    name = (
        called.attr
        if isinstance(called, ast.Attribute)
        else called.id
        if isinstance(called, ast.Name)
        else ""
    )
    return name.lower() in ("skip", "skiptest", "exit", "fail")
