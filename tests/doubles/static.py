"""Reads a module's surface from its sources, running nothing: for packages that cannot be imported here."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.doubles.wanted import CLASSES, MEMORY, PRIVATE, SOURCES, Rows


def read_sources(path: Path) -> Callable[[str], str | None]:
    """A reader of the modules in a wheel or below a folder, by dotted name; None where there is no such module."""
    archive = None if path.is_dir() else zipfile.ZipFile(path)
    listed = frozenset() if archive is None else frozenset(archive.namelist())

    def read(dotted: str) -> str | None:
        base = dotted.replace(".", "/")
        for name in (f"{base}/__init__.py", f"{base}.py"):
            if archive is not None:
                if name in listed:
                    return archive.read(name).decode("utf-8")
            elif (path / name).is_file():
                return (path / name).read_text(encoding="utf-8")
        return None

    return read


class Static:
    """The names of modules, found by following their imports without running anything."""

    def __init__(self, root: str, read: Callable[[str], str | None]) -> None:
        self._root = root
        self._read = read
        self._known: dict[str, dict[str, ast.AST]] = {}

    def names(self, dotted: str) -> dict[str, ast.AST]:
        """Every function and class that ``dotted`` binds, by name, with its definition."""
        if dotted not in self._known:
            self._known[dotted] = {}  # an import cycle sees what is known so far
            text = self._read(dotted)
            if text is not None:
                self._bind(dotted, _statements(ast.parse(text).body), self._known[dotted])
        return self._known[dotted]

    def _bind(self, dotted: str, body: Iterable[ast.stmt], into: dict[str, ast.AST]) -> None:
        for one in body:
            if isinstance(one, (ast.FunctionDef, ast.ClassDef)):
                into[one.name] = one
            elif isinstance(one, ast.ImportFrom):
                source = self._absolute(dotted, one)
                # What lies elsewhere is no part of the surface.
                within = f"{source}.".startswith(f"{self._root}.")
                found = self.names(source) if within else {}
                for alias in one.names:
                    if alias.name == "*":
                        into.update({key: value for key, value in found.items() if not key.startswith("_")})
                    elif alias.name in found:
                        into[alias.asname or alias.name] = found[alias.name]
            elif isinstance(one, ast.Assign) and (value := _assigned(one.value, into)) is not None:
                into.update({target.id: value for target in one.targets if isinstance(target, ast.Name)})

    def _absolute(self, dotted: str, one: ast.ImportFrom) -> str:
        if not one.level:
            return one.module or ""
        is_package = self._read(f"{dotted}.__init__") is not None
        parts = dotted.split(".") if is_package else dotted.split(".")[:-1]
        kept = parts[: len(parts) - one.level + 1]
        return ".".join([*kept, *((one.module or "").split(".") if one.module else [])])


def _assigned(value: ast.expr, known: dict[str, ast.AST]) -> ast.AST | None:
    """The definition behind ``= other``, ``= deprecated(...)(other)`` and ``= getattr(c, "f", lambda: ...)``."""
    if isinstance(value, ast.Name):
        return known.get(value.id)
    if isinstance(value, ast.Call):
        if isinstance(value.func, ast.Call) and len(value.args) == 1:
            return _assigned(value.args[0], known)
        if getattr(value.func, "id", "") == "getattr" and isinstance(value.args[-1], ast.Lambda):
            return value.args[-1]
    return None


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under if, try and with included; a first definition wins over a fallback."""
    for one in body:
        if isinstance(one, (ast.If, ast.Try, ast.With)):
            for handler in getattr(one, "handlers", []):
                yield from _statements(handler.body)
            yield from _statements(getattr(one, "orelse", []))
            yield from _statements(one.body)
        else:
            yield one


def extract(name: str, read: Callable[[str], str | None]) -> dict[str, object]:
    """The surface of a module from its sources."""
    static = Static(SOURCES[name], read)
    functions: dict[str, Rows | None] = {}
    classes: dict[str, object] = {}
    found = static.names(SOURCES[name])
    for key, node in sorted(found.items()):
        if isinstance(node, ast.ClassDef):
            if key in CLASSES:
                classes[key] = _static_class(node, found)
        elif isinstance(node, (ast.FunctionDef, ast.Lambda)) and (key in PRIVATE or not key.startswith("_")):
            functions[key] = _static_rows(node)
    memory = {
        key: _static_rows(node)
        for key, node in sorted(static.names(f"{SOURCES[name]}.memory").items())
        if key in MEMORY and isinstance(node, ast.FunctionDef)
    }
    return {"functions": functions, "classes": classes, "memory": memory}


def _static_class(node: ast.ClassDef, others: dict[str, ast.AST]) -> dict[str, object]:
    methods: dict[str, ast.FunctionDef] = {}
    for base in node.bases:
        parent = others.get(getattr(base, "id", ""))
        if isinstance(parent, ast.ClassDef):
            methods |= _own_methods(parent)
    methods |= _own_methods(node)
    creator = methods.get("__init__") or methods.get("__new__")
    return {
        "call": _static_rows(creator, skip=1) if creator else None,
        "methods": {k: _static_rows(v, skip=1) for k, v in sorted(methods.items()) if not k.startswith("__")},
    }


def _own_methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {
        one.name: one
        for one in node.body
        if isinstance(one, ast.FunctionDef)
        and not any(getattr(mark, "id", "") == "property" for mark in one.decorator_list)
    }


def _static_rows(node: ast.FunctionDef | ast.Lambda, skip: int = 0) -> Rows:
    arguments = node.args
    positional = [(one, "positional_only") for one in arguments.posonlyargs]
    positional += [(one, "positional_or_keyword") for one in arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    rows: Rows = [[one.arg, kind, place >= first_default] for place, (one, kind) in enumerate(positional)]
    if arguments.vararg:
        rows.append([arguments.vararg.arg, "var_positional", False])
    rows += [
        [one.arg, "keyword_only", default is not None]
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        rows.append([arguments.kwarg.arg, "var_keyword", False])
    return rows[skip:]
