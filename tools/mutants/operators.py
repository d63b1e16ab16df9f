"""What is changed: each operator makes from one place of a source the same source with a small fault in it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change."""

    file: str  # below the root, as "devicekit/memory/pages.py"
    line: int
    function: int | None  # line where it begins; None: the change is at the module's level
    lines: range  # of the statement, down to the change; empty where it runs as the module is imported
    uses: tuple[int, ...]  # lines that name what such a statement gives a value to
    operator: str
    before: str
    after: str
    text: str  # the whole changed source

    @property
    def name(self) -> str:
        """Says which one it is, whatever lines are above it."""
        return f"{self.file}: {self.operator}: {self.before} -> {self.after}"


_COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NOBODY_ASKS = ("_log", "warnings", "logging")  # what is only told to whoever reads logs
_Found = Iterator[tuple[str, ast.AST, ast.AST]]


def _comparison(node: ast.AST) -> _Found:
    if isinstance(node, ast.Compare):
        for at, one in enumerate(node.ops):
            if (other := _COMPARISONS.get(type(one))) is not None:
                changed = copy.deepcopy(node)
                changed.ops[at] = other()
                yield "comparison", node, changed


def _and_or(node: ast.AST) -> _Found:
    if isinstance(node, ast.BoolOp):
        changed = copy.deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", node, changed


def _arithmetic(node: ast.AST) -> _Found:
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and (other := _ARITHMETIC.get(type(node.op))) is not None:
        changed = copy.deepcopy(node)
        changed.op = other()
        yield "arithmetic", node, changed


def _constant(node: ast.AST) -> _Found:
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int)):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield "constant", node, ast.Constant(value)


def _condition(node: ast.AST) -> _Found:
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield "condition", node.test, ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "condition", node, node.operand


def _returned(node: ast.AST) -> _Found:
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "returned", node, ast.Return(ast.Constant(None))


def _removed(node: ast.AST) -> _Found:
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    written = isinstance(node, ast.Assign) and all(isinstance(one, ast.Attribute) for one in node.targets)
    if called or written or isinstance(node, (ast.AugAssign, ast.Delete)):
        yield "removed", node, ast.Pass()


OPERATORS: tuple[Callable[[ast.AST], _Found], ...] = (
    _comparison,
    _and_or,
    _arithmetic,
    _constant,
    _condition,
    _returned,
    _removed,
)


def mutants(file: str, text: str) -> list[Mutant]:
    """Every mutant of a source."""
    found: list[Mutant] = []
    lines = text.splitlines(keepends=True)
    module = ast.parse(text)
    for node, function, statement in _places(module):
        for operator in OPERATORS:
            for name, place, changed in operator(node):
                before, after = _written(place), _written(changed)
                new = _replaced(lines, place, after)
                if new is not None and before != after:
                    begin, end = getattr(place, "lineno", 0), getattr(place, "end_lineno", 0)
                    run = range(statement or end + 1, end + 1)
                    uses = () if run else _uses(module, begin)
                    found.append(Mutant(file, begin, function, run, uses, name, before, after, new))
    return found


def _uses(module: ast.Module, line: int) -> tuple[int, ...]:
    given = {
        one.id
        for statement in module.body
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.lineno <= line
        and line <= (statement.end_lineno or line)
        for one in ast.walk(statement)
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    }  # fmt: skip
    named = (one for one in ast.walk(module) if isinstance(one, ast.Name) and one.id in given)
    return tuple(sorted({one.lineno for one in named if isinstance(one.ctx, ast.Load)}))


_Place = tuple[ast.AST, int | None, int | None]


def _places(module: ast.Module) -> Iterator[_Place]:
    """Every node that does something, with the lines where its function and in that its statement begin."""
    for child in module.body:
        yield from _place(child, None, None)


def _place(node: ast.AST, function: int | None, statement: int | None) -> Iterator[_Place]:
    if _says_nothing(node):
        return
    if isinstance(node, ast.stmt) and function is not None:
        statement = node.lineno
    parts: list[ast.AST]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if node.name in ("__repr__", "__str__"):
            return
        # As code objects tell it: with the first decorator.
        begin = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        for inner in node.body:
            yield from _place(inner, begin, None)
        parts = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    elif isinstance(node, ast.ClassDef):
        parts = [*node.body]  # how a record is kept (slots, frozen) is for speed and for people
    elif isinstance(node, ast.AnnAssign):
        parts = [] if node.value is None else [node.value]
    else:
        yield node, function, statement
        parts = [*ast.iter_child_nodes(node)]
    for part in parts:
        yield from _place(part, function, statement)


def _says_nothing(node: ast.AST) -> bool:
    """Whether a node is words for people, types, or an import."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
        return True
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: as an assertion
        return True
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and ast.unparse(node.right) == "None":
        return True
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).startswith(_NOBODY_ASKS)
    )


def _written(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))


def _replaced(lines: list[str], place: ast.AST, after: str) -> str | None:
    start, end = getattr(place, "lineno", None), getattr(place, "end_lineno", None)
    if start is None or end is None:
        return None
    first = lines[start - 1].encode()
    last = lines[end - 1].encode()
    head = b"".join(one.encode() for one in lines[: start - 1]) + first[: place.col_offset]  # type: ignore[attr-defined]
    tail = last[place.end_col_offset :] + b"".join(one.encode() for one in lines[end:])  # type: ignore[attr-defined]
    kept = "\n" * (end - start)  # what stands below stays in its line
    written = after + kept if isinstance(place, ast.stmt) else f"({after}{kept})"
    new: str = (head + written.encode() + tail).decode()
    try:
        compile(new, "mutant", "exec")
    except (SyntaxError, ValueError):
        return None
    return new
