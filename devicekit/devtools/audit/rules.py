"""The rules of the audit, applied to one file's syntax tree."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

from devicekit.devtools.audit import words
from devicekit.devtools.audit.beside import advice_of
from devicekit.devtools.audit.findings import RULES, Edit, Finding, Rule
from devicekit.devtools.audit.fixes import Editor
from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.names import Names
from devicekit.devtools.audit.roles import expects, parameters_of, role, sets_for_type
from devicekit.devtools.audit.syntax import (
    arguments_of,
    called_name,
    filled,
    moves_tensor,
    names_device,
    short,
    uses_environment,
)
from devicekit.devtools.audit.table import ANY_VENDOR, OWN_MOVES, replacement_of
from devicekit.devtools.audit.walk import Walker

__all__ = ["RULES", "Analysis", "Finding", "Rule", "analyse", "findings_in"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """A file's findings in order, and the edits that mend some of them."""

    findings: tuple[Finding, ...]
    edits: tuple[Edit, ...] = ()


def findings_in(text: str, path: str) -> list[Finding]:
    """Every finding in a file's text, in order; waivers are not considered here."""
    return collapse(analyse(text, path).findings)


def analyse(text: str, path: str, device_name: str | None = None) -> Analysis:
    """Every finding in a file's text and what mends it, each question counted as often as it is asked.

    Args:
        text: the file's.
        path: as findings name it.
        device_name: an expression for the device to use, where its first name is bound.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, path)
        telltale = words.telltale(text)
        if telltale is None:
            return Analysis(())
        visitor = _Visitor(path, text, tree, telltale, device_name)
        visitor.visit_statements(tree.body)
        return visitor.result()
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return Analysis((unreadable(path, str(error), line),))
    except (RecursionError, MemoryError):
        return Analysis((unreadable(path, "nested too deeply to be read"),))


def unreadable(path: str, why: str, line: int = 1) -> Finding:
    """The finding that stands for a file of which nothing is known."""
    return Finding(path, line, 1, "DK000", why, "")


def collapse(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for each question, however often a file asks it."""
    kept: dict[object, Finding] = {}
    for finding in sorted(findings):
        key = (finding.path, finding.flag) if finding.flag else (finding.path, len(kept), finding)
        first = kept.get(key)
        kept[key] = finding if first is None else replace(first, times=first.times + finding.times)
    return list(kept.values())


class _Visitor(Walker):
    """Reports outside in: an expression that is reported as a whole is not reported again in parts."""

    def __init__(
        self, path: str, text: str, tree: ast.Module, telltale: words.Telltale, device_name: str | None
    ) -> None:
        self._file = path
        self._lines = text.split("\n")
        marks = Marks(text, telltale)
        # A function that has no such line can still bind a name of those around it.
        outer = "global " in text or "nonlocal " in text
        names = Names(tree, None if outer else marks)
        aliases = names.aliases(lambda path: words.module_rule(path) is not None)
        if aliases:
            marks = Marks(text, telltale, aliases)
            names = Names(tree, None if outer else marks)
        super().__init__(path, tree, names, marks, Editor(names, text, tree, marks, device_name))
        self._findings: list[tuple[Finding, ast.AST]] = []

    def result(self) -> Analysis:
        """What was found, once everything was visited."""
        edits = self._editor.settle(node for _, node in self._findings)
        findings = []
        for finding, node in self._findings:
            edit = edits.get(node) or self._editor.swallowed(node, edits.values())
            fix = "" if edit is None else "safe" if edit.safe else "unsafe"
            findings.append(replace(finding, fix=fix))
        return Analysis(tuple(sorted(findings)), tuple(edits.values()))

    # -- What is found ----------------------------------------------------------------------------------------

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
        if self._editor.calls.attribute_of_call(node, self._place):
            self._report_module(node, self._names.path(node.value.func, self._place.scope) or "")  # type: ignore[attr-defined]  # a call
            for argument in arguments_of(node.value):
                self.visit(argument)
        elif (path := self._path(node)) is not None and (rule := words.module_rule(path)) is not None:
            self._editor.calls.attribute(node, path, self._place)
            self._report(node, rule, path)
        elif words.is_handle(node.attr) and (instead := self._editor.calls.native_handle(node, self._place)):
            self._report(node, "DK001", short(node), instead)
            self.visit(node.value)
        elif words.is_question(node.attr):
            instead = self._editor.tensor_question(node, self._place)
            self._report(node, "DK004", short(node), instead, changes=ANY_VENDOR, flag=self._flag(node))
            self.visit(node.value)
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            return
        path = self._names.path(node, self._place.scope)
        if path is not None and path != node.id and (rule := words.module_rule(path)) is not None:
            self._editor.calls.attribute(node, path, self._place)
            self._report(node, rule, path)
        elif words.is_question(node.id):
            self._report(node, "DK004", node.id, flag=self._flag(node))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._check_variable(node)
        if self._editor.calls.item_of_call(node, self._place):
            self._report_module(node, self._names.path(node.value.func, self._place.scope) or "")  # type: ignore[attr-defined]  # a call
            for argument in arguments_of(node.value):
                self.visit(argument)
        else:
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        self._check_variable(node)
        if any(map(names_device, (node.left, *node.comparators))):
            instead, changes = self._editor.device_question(node, self._place)
            self._report(node, "DK004", short(node), instead, changes=changes or ANY_VENDOR)
        else:
            self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.generic_visit(node)
        self._editor.presence(node, self._place)
        self._editor.one_question(node)

    def visit_match_case(self, node: ast.match_case) -> None:
        for part in ast.walk(node.pattern):
            if isinstance(part, ast.MatchValue) and names_device(part.value):
                self._report(part, "DK004", f"case {short(part.value)}")
        if node.guard is not None:
            self.visit(node.guard)
        self.visit_body(node.body)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if filled(node) is None:
            self.generic_visit(node)
            return
        self.visit(node.left)
        with self._at(assigned=""):
            self.visit(node.right)

    def visit_Call(self, node: ast.Call) -> None:
        self._check_variable(node)
        self._editor.calls.hand_on(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        arguments = arguments_of(node)
        literals = any(map(names_device, arguments))
        if (path := self._names.path(node, self._place.scope)) is not None and words.module_rule(
            path
        ) is not None:
            self._report(node, "DK001", short(node))  # getattr(torch, "cuda") and the like
        elif (path := self._path(node.func)) is not None and words.module_rule(path) == "DK001":
            self._editor.calls.call(node, path, self._place)
            self._report_module(node, path)
            for argument in arguments:
                self.visit(argument)
        elif name in words.DEVICES and moves_tensor(node):
            self._editor.moves.move(node, self._place)
            self._report(node, "DK003", short(node), changes=OWN_MOVES)
            self.visit(node.func.value)  # type: ignore[attr-defined]  # it has a name, so it is an attribute
        elif name == "to" and literals:
            self._editor.moves.literals(node, self._place)
            self._report(node, "DK003", short(node))
            self.visit(node.func.value)  # type: ignore[attr-defined]
        elif name in ("startswith", "endswith") and literals:
            instead, changes = self._editor.device_question(node, self._place)
            self._report(node, "DK004", short(node), instead, changes=changes)
        elif self._names.path(node.func, self._place.scope) in ("getattr", "hasattr") and literals:
            self._report(node, "DK001", short(node))
        else:
            self._visit_call(node)

    def _visit_call(self, node: ast.Call) -> None:
        """A call that is no finding itself: what it is given may be."""
        called = node.func
        if (
            isinstance(called, ast.Attribute)
            and words.is_question(called.attr)
            and self._path(called) is None
        ):
            self._report(called, "DK004", short(called), flag=self._flag(called))
            self.visit(called.value)
        elif (text := filled(node)) is not None:
            self.visit(text)
        else:
            self.visit(called)
        path = self._path(node.func) or ""
        takes = parameters_of(self._names.definition(node.func, self._place.scope)) if node.args else []
        told = self._place.told and path == "torch.device"
        if any(
            isinstance(one, ast.Constant) and words.is_apart(str(one.value)) for one in arguments_of(node)
        ):
            self._apart.update(one for one in arguments_of(node) if isinstance(one, ast.Lambda))
        with self._at(setting=sets_for_type(path or called_name(called)), told=told):
            for number, argument in enumerate(node.args):
                if number == 0 and path == "typing.cast":
                    self._visit_annotation(argument)
                    continue
                if isinstance(argument, ast.Starred):
                    takes = []
                own = takes[number] if number < len(takes) and words.may_hold_device(takes[number]) else ""
                self._visit_in_role(argument, role(path, number, None) or own)
            for keyword in node.keywords:
                self._visit_in_role(keyword.value, role(path, -1, keyword.arg))

    def _visit_in_role(self, node: ast.expr, role: str) -> None:
        if role == self._place.assigned:
            self.visit(node)
        elif (
            isinstance(node, (ast.Constant, ast.JoinedStr, ast.IfExp, ast.BoolOp))
            or filled(node) is not None
            or self._place.assigned
        ):
            with self._at(assigned=role, told=self._place.told or expects(role)):
                self.visit(node)
        else:
            self.visit(node)  # only those hand a role on

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            return
        if words.is_device(node.value):
            if not self._place.annotation:  # Literal["cuda"]
                self._editor.moves.literal(node, self._place)
            self._report(node, "DK002", repr(node.value))
        elif words.is_collective(node.value):
            self._editor.moves.collective(node, self._place)
            self._report(node, "DK005", repr(node.value))
        elif words.VISIBLE.fullmatch(node.value):
            self._report(node, "DK006", repr(node.value))
        elif words.ALLOCATOR.fullmatch(node.value):
            self._report(node, "DK008", repr(node.value))
        elif words.PATH.fullmatch(node.value):
            self._report(node, "DK001", repr(node.value), advice_of(node.value)[0])

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        if names_device(node):
            self._editor.moves.formatted(node, self._place)
            self._report(node, "DK002", short(node))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                with self._at(formatted=True):
                    self.visit(part)

    def _check_variable(self, node: ast.expr) -> None:
        """Report a variable of one vendor's libraries; others have rules of their own."""
        name = uses_environment(node)
        if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
            return
        other = words.VISIBLE.fullmatch(name.value) or words.ALLOCATOR.fullmatch(name.value)
        if words.SETTING.fullmatch(name.value) and not other:
            self._report(name, "DK010", repr(name.value))

    # -- Reporting --------------------------------------------------------------------------------------------

    def _path(self, node: ast.expr) -> str | None:
        return self._names.path(node, self._place.scope)

    def _flag(self, node: ast.expr) -> str:
        """The question that a file may ask often and that is one finding, as its name or dotted path."""
        first = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if not isinstance(first, ast.Name):
            return ""
        home = self._place.scope.home(first.id)
        shared = home is None or home is self._names.module or first.id in ("self", "cls")
        return ast.unparse(node) if shared else ""

    def _check_module(self, node: ast.stmt, module: str) -> bool:
        rule = words.module_rule(module)
        if rule is not None:
            self._report(node, rule, module, advice_of(module)[0] if rule == "DK001" else "")
        return rule is not None

    def _report_module(self, node: ast.expr, path: str) -> None:
        row = replacement_of(path)
        if row is None:
            self._report(node, words.module_rule(path) or "DK001", path)
        else:
            self._report(node, "DK001", path, row.sentence, changes=row.changes)

    def _report(
        self, node: ast.AST, rule: str, what: str, instead: str = "", *, changes: str = "", flag: str = ""
    ) -> None:
        if rule == "DK004":
            self._editor.mention(node)
        if not instead:
            instead, changes = advice_of(what) if rule == "DK001" else ("", "")
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        source = self._lines[line - 1].strip() if line <= len(self._lines) else ""
        found = Finding(self._file, line, column + 1, rule, what, source, instead, changes, flag=flag)
        self._findings.append((found, node))
