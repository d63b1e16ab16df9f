"""Which expression stands for the device in new code."""

from __future__ import annotations

import ast
import keyword

from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit import words
from devicekit.devtools.audit.names import Names, Scope
from devicekit.devtools.audit.place import Place

CURRENT = "devicekit.current_device()"
_OPENED = frozenset({"devicekit.get_device", "devicekit.device_for"})
_TYPES = frozenset({"devicekit.Device", "devicekit.device.Device", "devicekit.device.handle.Device"})


class ChosenDevice:
    """The device of a file: the one it has, the one a user names, or whichever is current."""

    def __init__(self, names: Names, tree: ast.Module, named: str | None) -> None:
        self._names = names
        self._module, _, self._named = (named or "").rpartition(":")
        self._own = self._opened_by(tree)

    def _opened_by(self, tree: ast.Module) -> str:
        """A name that the module gives to one device, once."""
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and len(node.targets) == 1:
                target = node.targets[0]
                opened = self._names.path(node.value.func, self._names.module)
                once = isinstance(target, ast.Name) and len(self._names.module.bound[target.id]) == 1
                if once and opened in _OPENED:
                    return ast.unparse(target)
        return ""

    def here(self, place: Place) -> tuple[str, tuple[str, ...]]:
        """The expression for the device that is meant without an index, and the modules that it names."""
        if place.switched:
            return CURRENT, ("devicekit",)
        if place.device:
            return place.device, ()
        if self._named:
            first = self._named.partition(".")[0]
            home = place.scope.home(first)
            if self._module:
                if home is None or home.bound[first] == [f"{self._module}.{first}"]:
                    return self._named, (f"{self._module}:{first}",)
            elif home is not None and self._may_be_device(first, home, place.scope):
                return self._named, ()
        elif self._own and place.scope.home(self._own) is self._names.module:
            return self._own, ()
        return CURRENT, ("devicekit",)

    def _may_be_device(self, name: str, home: Scope, scope: Scope) -> bool:
        """Whether nothing speaks against a bound name being the device that the user means."""
        if len(home.bound[name]) != 1:
            return False  # assigned again, so perhaps not yet, or something else
        if name not in home.parameters:
            return home is self._names.module and scope is not home
        parameter, default = home.parameters[name]
        if default is not None and not (isinstance(default, ast.Constant) and default.value is None):
            return False
        if parameter.annotation is None or "." in self._named:
            return True
        return self._names.path(parameter.annotation, home) in _TYPES

    def parameter(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> str:
        """A parameter that is annotated as a Device, if a function has exactly one."""
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        found = [
            one.arg
            for one in every
            if one.annotation is not None and self._names.path(one.annotation, scope) in _TYPES
        ]
        return found[0] if len(found) == 1 else ""


def check_name(named: str) -> None:
    """Refuse what cannot stand for a device.

    Raises:
        ConfigurationError: it is neither a dotted name nor module:name.
    """
    module, colon, expression = named.rpartition(":")
    parts = [*expression.split("."), *(module.split(".") if colon else ())]
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise ConfigurationError(
            f"{named!r} names no device. Write a name that is bound where it is used, as in device or "
            "self.device, or module:name to have it imported."
        )


def index_of(text: str) -> str | None:
    """The index in a literal such as "npu:1"; empty without one; ``None`` if it is no vendor's device, or all."""
    index = text.partition(":")[2]
    return index if words.is_device(text) and (index.isdecimal() or not index) else None
