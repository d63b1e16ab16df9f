"""Which functions of a file run while it is imported, because the file itself calls them then."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence

from devicekit.devtools.audit.syntax import is_main_block

_MAKE = ("__new__", "__init__", "__post_init__")  # what making an object calls
_CALL_EACH = frozenset({"map", "filter", "sorted", "min", "max", "reduce"})  # what they are given, at once
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def called_on_import(tree: ast.Module) -> set[ast.AST]:
    """The functions that run while a module is imported, as far as names tell.

    A function is known by its name wherever the file defines it, so that one too many may be among them.
    """
    return _Calls(tree).early


class _Calls:
    def __init__(self, tree: ast.Module) -> None:
        self.early: set[ast.AST] = set()
        self._functions: dict[str, list[_Function]] = defaultdict(list)
        self._methods: dict[str, list[_Function]] = defaultdict(list)
        self._classes: dict[str, list[ast.ClassDef]] = defaultdict(list)
        self._objects = {"self", "cls"}  # names for a class of this file or one of its objects
        self._define(tree, in_class=False)
        self._run(tree.body)

    def _define(self, node: ast.AST, *, in_class: bool) -> None:
        for one in ast.iter_child_nodes(node):
            if isinstance(one, _Function):
                (self._methods if in_class else self._functions)[one.name].append(one)
            elif isinstance(one, ast.ClassDef):
                self._classes[one.name].append(one)
                self._objects.add(one.name)
            elif isinstance(one, ast.expr):
                continue
            nested = in_class and not isinstance(one, (_Function, ast.ClassDef))
            self._define(one, in_class=nested or isinstance(one, ast.ClassDef))

    def _run(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            for one in _evaluated(node):
                if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call):
                    made = one.value.func
                    if isinstance(made, ast.Name) and made.id in self._classes:
                        self._objects.update(at.id for at in one.targets if isinstance(at, ast.Name))
                elif isinstance(one, ast.Call):
                    self._call(one.func)
                    each = isinstance(one.func, ast.Name) and one.func.id in _CALL_EACH
                    for given in (*one.args, *(key.value for key in one.keywords)) if each else ():
                        self._call(given)
                elif isinstance(one, (_Function, ast.ClassDef)):
                    for decorator in one.decorator_list:
                        self._decorate(decorator)

    def _call(self, called: ast.expr) -> None:
        for one in self._meant(called):
            if one not in self.early:
                self.early.add(one)
                self._run(one.body)

    def _meant(self, called: ast.expr) -> Iterator[_Function]:
        if isinstance(called, ast.Name):
            yield from self._functions.get(called.id, ())
            for one in self._classes.get(called.id, ()):
                yield from (at for at in one.body if isinstance(at, _Function) and at.name in _MAKE)
        elif isinstance(called, ast.Attribute):
            whose = called.value
            if isinstance(whose, ast.Call):
                whose = whose.func  # super().x(), Thing().x()
            while isinstance(whose, ast.Attribute):
                whose = whose.value
            if isinstance(whose, ast.Name) and (whose.id in self._objects or whose.id == "super"):
                yield from self._methods.get(called.attr, ())

    def _decorate(self, decorator: ast.expr) -> None:
        """What a decorator calls when a definition is read: itself, or what a call of it returns."""
        if not isinstance(decorator, ast.Call):
            self._call(decorator)
            return
        for maker in list(self._meant(decorator.func)):
            given_back = {
                one.value.id
                for one in ast.walk(maker)
                if isinstance(one, ast.Return) and isinstance(one.value, ast.Name)
            }
            for one in maker.body:
                if isinstance(one, _Function) and one.name in given_back:
                    self._call(ast.Name(one.name, ast.Load()))


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated when a statement runs: not what functions hold, nor what the main program does."""
    yield node
    if isinstance(node, (_Function, ast.Lambda)):
        inside: Sequence[ast.AST] = [
            *getattr(node, "decorator_list", ()),
            *node.args.defaults,
            *(one for one in node.args.kw_defaults if one is not None),
        ]
    elif isinstance(node, ast.If) and is_main_block(node.test):
        inside = node.orelse
    else:
        inside = list(ast.iter_child_nodes(node))
    for one in inside:
        yield from _evaluated(one)
