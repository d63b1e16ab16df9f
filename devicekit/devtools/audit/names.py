"""What a name in a file stands for: imports and aliases followed, names that something else shadows left alone."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field

from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.words import is_value

_LEAVES = (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.Constant)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(slots=True)
class Scope:
    """The names bound in a module, class, function or comprehension."""

    parent: Scope | None = None
    is_class: bool = False
    # Name -> what it was bound to: a dotted path (import), an expression (alias), or None (anything else).
    bound: dict[str, list[str | ast.expr | None]] = field(default_factory=dict)
    outer: set[str] = field(default_factory=set)  # declared global or nonlocal
    paths: dict[str, str | None] = field(default_factory=dict)  # of names that were asked about
    parameters: dict[str, tuple[ast.arg, ast.expr | None]] = field(
        default_factory=dict
    )  # with their defaults
    functions: dict[str, Definition] = field(default_factory=dict)  # and classes

    def bind(self, name: str, to: str | ast.expr | None = None) -> None:
        """Note one more thing that ``name`` is bound to."""
        home = self
        while name in home.outer and home.parent is not None:
            home = home.parent
        home.bound.setdefault(name, []).append(to)

    def home(self, name: str) -> Scope | None:
        """The scope that binds ``name`` for code in this one."""
        scope: Scope | None = self
        first = True
        while scope is not None:
            if name in scope.bound and (first or not scope.is_class):
                return scope
            scope, first = scope.parent, False
        return None


class Names:
    """The scopes of one file."""

    def __init__(self, tree: ast.Module, marks: Marks | None = None) -> None:
        """Read a file's bindings; with ``marks``, those of functions only that have a marked line."""
        self.module = Scope()
        self._scopes: dict[ast.AST, Scope] = {tree: self.module}
        _Binder(self._scopes, self.module, marks).visit_all(tree.body)

    def aliases(self, wanted: Callable[[str], bool]) -> set[str]:
        """The names that stand for a path that is ``wanted``."""
        found: set[str] = set()
        for scope in self._scopes.values():
            for name, targets in scope.bound.items():
                if any(target is not None for target in targets):
                    path = self.path(ast.Name(name, ast.Load()), scope)
                    if path is not None and path != name and wanted(path):
                        found.add(name)
        return found

    def scope(self, node: ast.AST) -> Scope:
        """The scope that a module, class, function or comprehension opens."""
        return self._scopes[node]

    def definition(self, node: ast.expr, scope: Scope) -> Definition | None:
        """The function or class of this file that a name stands for, and nothing else."""
        home = scope.home(node.id) if isinstance(node, ast.Name) else None
        if home is None or not isinstance(node, ast.Name) or len(home.bound[node.id]) != 1:
            return None
        return home.functions.get(node.id)

    def methods(self) -> set[str]:
        """What the classes of this file define."""
        return {name for one in self._scopes.values() if one.is_class for name in one.functions}

    def path(self, node: ast.expr, scope: Scope) -> str | None:
        """The dotted path that an expression stands for, as in ``torch.cuda.synchronize``; ``None``: unknown."""
        after: list[str] = []
        while isinstance(node, ast.Attribute):
            after.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            base = self._path_of_name(node.id, scope)
        elif isinstance(node, ast.Call):
            base = self._path_of_call(node, scope)
        else:
            return None
        return None if base is None else ".".join([base, *reversed(after)])

    def _path_of_name(self, name: str, scope: Scope) -> str | None:
        home = scope.home(name)
        if home is None:
            return name
        if name not in home.paths:
            home.paths[name] = None  # what is assigned in a circle is unknown
            found: set[str | None] = set()
            for target in home.bound[name]:
                if isinstance(target, ast.Constant) and target.value is None:
                    continue  # "except ImportError: name = None"
                found.add(self._assigned(target, home) if isinstance(target, ast.expr) else target)
                if len(found) > 1:
                    break
            home.paths[name] = found.pop() if len(found) == 1 else None
        return home.paths[name]

    def _assigned(self, node: ast.expr, home: Scope) -> str | None:
        path = self.path(node, home)
        return None if path is None or is_value(path) else path

    def _path_of_call(self, node: ast.Call, scope: Scope) -> str | None:
        if node.keywords or not 1 <= len(node.args) <= 2:
            return None
        last = node.args[-1]
        if not isinstance(last, ast.Constant) or not isinstance(last.value, str):
            return None
        text, called = last.value, self.path(node.func, scope)
        if called == "getattr" and len(node.args) == 2 and text.isidentifier():
            base = self.path(node.args[0], scope)
            return None if base is None else f"{base}.{text}"
        if called == "importlib.import_module" and len(node.args) == 1:
            return text
        if called == "torch.get_device_module" and len(node.args) == 1:
            return f"torch.{text.partition(':')[0]}"
        return None


class _Binder(ast.NodeVisitor):
    """Notes every binding of a file."""

    def __init__(self, scopes: dict[ast.AST, Scope], scope: Scope, marks: Marks | None) -> None:
        self._scopes = scopes
        self._scope = scope
        self._marks = marks

    def visit_all(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, (ast.Global, ast.Nonlocal)):
                self._scope.outer.update(node.names)
        for node in nodes:
            self.visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.asname is not None:
                self._scope.bind(alias.asname, alias.name)
            else:
                first = alias.name.partition(".")[0]
                self._scope.bind(first, first)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name != "*":
                path = f"{node.module}.{alias.name}" if node.module is not None and not node.level else None
                self._scope.bind(alias.asname or alias.name, path)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assign(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self._assign([node.target], node.value)
        else:
            self.visit(node.target)

    def _assign(self, targets: list[ast.expr], value: ast.expr) -> None:
        self.visit(value)
        for target in targets:
            # A name given to itself at its own line, as in "torch = torch", says nothing new.
            if isinstance(target, ast.Name):
                plain = isinstance(value, (ast.Name, ast.Attribute, ast.Call, ast.Constant))
                self._scope.bind(target.id, value if plain else None)
            else:
                self.visit(target)

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._scope.bind(node.id)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._bind_named(node.name, node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self._bind_named(node.name, node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        self._bind_named(node.name, node)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self._bind_named(node.rest, node)

    def _bind_named(self, name: str | None, node: ast.AST) -> None:
        if name is not None:
            self._scope.bind(name)
        self.generic_visit(node)

    def _define(self, node: Definition) -> None:
        self._scope.bind(node.name)
        self._scope.functions[node.name] = node

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._define(node)
        for part in (*node.decorator_list, *node.bases, *(one.value for one in node.keywords)):
            self.visit(part)
        self._inside(node, is_class=True).visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._define(node)
        for part in (
            *node.decorator_list,
            *defaults_of(node.args),
            *annotations_of(node.args),
            *_present(node.returns),
        ):
            self.visit(part)
        if self._marks is not None and not self._marks.within(node):
            return
        inner = self._inside(node)
        inner.bind_arguments(node.args)
        inner.visit_all(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for part in defaults_of(node.args):
            self.visit(part)
        inner = self._inside(node)
        inner.bind_arguments(node.args)
        inner.visit(node.body)

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, _COMPREHENSIONS):
            inner = self._inside(node)
            for child in ast.iter_child_nodes(node):
                inner.visit(child)
            return
        for field_name in node._fields:
            value = getattr(node, field_name, None)
            if isinstance(value, list):
                if value and isinstance(value[0], ast.stmt):
                    self.visit_all(value)
                    continue
                for one in value:
                    if isinstance(one, ast.AST):
                        self.visit(one)
            elif isinstance(value, ast.AST) and not isinstance(value, _LEAVES):
                self.visit(value)

    def bind_arguments(self, arguments: ast.arguments) -> None:
        positional = [*arguments.posonlyargs, *arguments.args]
        missing = len(positional) - len(arguments.defaults)
        given = [*[None] * missing, *arguments.defaults, *arguments.kw_defaults]
        for one, default in zip([*positional, *arguments.kwonlyargs], given, strict=True):
            self._scope.bind(one.arg)
            self._scope.parameters[one.arg] = (one, default)
        for extra in (arguments.vararg, arguments.kwarg):
            if extra is not None:
                self._scope.bind(extra.arg)

    def _inside(self, node: ast.AST, *, is_class: bool = False) -> _Binder:
        scope = Scope(self._scope, is_class)
        self._scopes[node] = scope
        return _Binder(self._scopes, scope, self._marks)


def defaults_of(arguments: ast.arguments) -> list[ast.expr]:
    """The defaults of a function, which are evaluated when it is defined."""
    return [*arguments.defaults, *(one for one in arguments.kw_defaults if one is not None)]


def annotations_of(arguments: ast.arguments) -> list[ast.expr]:
    """The annotations of a function's parameters."""
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    extras = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [one.annotation for one in (*every, *extras) if one.annotation is not None]


def _present(node: ast.expr | None) -> list[ast.expr]:
    return [] if node is None else [node]
