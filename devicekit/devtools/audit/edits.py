"""The edits of one file as they are noted, and what code for a device is put together from."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from devicekit.devtools.audit import words
from devicekit.devtools.audit.chosen import ChosenDevice, index_of
from devicekit.devtools.audit.findings import Edit, Span
from devicekit.devtools.audit.names import Names, Scope
from devicekit.devtools.audit.place import Place
from devicekit.devtools.audit.rendering import NEED_PARENTHESES, Part
from devicekit.devtools.audit.source import Source
from devicekit.devtools.audit.syntax import is_none
from devicekit.devtools.audit.table import Replacement, replacement_of
from devicekit.devtools.audit.texts import Texts

# What code says that TorchScript reads from elsewhere, by a call or as part of something larger.
_SCRIPTED = re.compile(
    r"\bjit\.(?:script|is_scripting|export|annotate|interface|Final|Future|fork|wait|Attribute)\b"
)


class Edits:
    """The edits of one file, each by the expression that it replaces."""

    def __init__(self, names: Names, text: str, tree: ast.Module, device_name: str | None) -> None:
        self.names = names
        self.chosen = ChosenDevice(names, tree, device_name)
        self.made: dict[ast.AST, Edit] = {}
        self._source = Source(text)
        self.texts = Texts(names, self._source, self.chosen)
        self._scripted = _SCRIPTED.search(text) is not None

    def span(self, node: ast.AST) -> Span:
        """Where a node begins and ends."""
        return self._source.span(node)

    def here(self, place: Place) -> tuple[str, tuple[str, ...]]:
        """The expression for the device that is meant without an index, and the modules that it names."""
        return self.chosen.here(place)

    def path(self, node: ast.expr, scope: Scope) -> str:
        """The dotted path that an expression stands for; empty: that is unknown."""
        return self.names.path(node, scope) or ""

    def row(self, called: ast.expr, scope: Scope) -> tuple[str, Replacement | None]:
        """The path of what is called, and what takes its place if it is of a vendor's module."""
        path = self.path(called, scope)
        return path, replacement_of(path) if words.is_vendor(path) else None

    def keep(self, edit: Edit, node: ast.AST, place: Place) -> None:
        text = "".join(part for part in edit.parts if isinstance(part, str))
        if (
            self._scripted
            or place.apart
            or place.caught
            or not words.vendors_in(ast.unparse(node)) <= words.CHOSEN
        ):
            edit = replace(edit, safe=False)
        home = place.scope.home("devicekit")
        hidden = home not in (None, self.names.module) and "devicekit" in edit.imports
        if not hidden and not (place.formatted and ('"' in text or "'" in text)):
            self.made[node] = edit

    def handle(
        self, argument: ast.expr | None, place: Place
    ) -> tuple[tuple[Part, ...], tuple[str, ...]] | None:
        """The parts of an expression for the device that an argument names; ``None``: that is not known."""
        here, imports = self.here(place)
        if argument is None or is_none(argument):
            return (here,), imports
        if isinstance(argument, (ast.Starred, *NEED_PARENTHESES)):
            return None
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            index = index_of(argument.value)
            if index is None:
                return None
            return ((f"devicekit.device_for({index})",), ("devicekit",)) if index else ((here,), imports)
        if isinstance(argument, ast.JoinedStr):
            return None
        if isinstance(argument, ast.Call):
            path = self.path(argument.func, place.scope)
            if words.is_vendor(path) and path.endswith(".current_device"):
                return (here,), imports
        if ast.unparse(argument) == here:
            return (here,), imports
        return ("devicekit.device_for(", self.span(argument), ")"), ("devicekit",)

    def torch(self, node: ast.expr, place: Place) -> str:
        """The name by which code has torch at hand; empty if it has not."""
        first = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if isinstance(first, ast.Name) and self.names.path(first, place.scope) == "torch":
            return first.id
        return ""

    def is_imported(self, node: ast.expr, place: Place) -> bool:
        """Whether an expression is a module or class that the file imports."""
        first = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if not isinstance(first, ast.Name):
            return False
        home = place.scope.home(first.id)
        return home is not None and any(isinstance(one, str) for one in home.bound[first.id])
