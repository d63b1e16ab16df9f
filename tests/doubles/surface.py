"""A vendor module's recorded surface, and modules that can do no more than it says.

* a name the vendor does not have in this version      -> AttributeError, as on hardware
* arguments the vendor's function would refuse         -> TypeError, as on hardware
* a call of a real name that the double does not model -> NotImplementedError
* a double that models what the vendor does not have   -> SurfaceError when it is built
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from tests.doubles.wanted import Rows

_FOLDER = Path(__file__).parent / "surfaces"
_KINDS = {kind.name.lower(): kind for kind in inspect._ParameterKind}


class SurfaceError(Exception):
    """A double claims what the vendor does not have."""


class Surface:
    """One version of a vendor's module."""

    def __init__(self, name: str, version: str | None = None) -> None:
        self.record = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        self.versions = sorted(
            self.record["absent"], key=lambda text: [int(part) for part in text.split(".")]
        )
        self.version = version or self.versions[-1]
        self._absent = frozenset(self.record["absent"][self.version])

    @property
    def module(self) -> str:
        return str(self.record["module"])

    @property
    def names(self) -> frozenset[str]:
        """Every function, class and attribute of this version."""
        record = self.record
        return frozenset({*record["functions"], *record["classes"], *record["attributes"]}) - self._absent

    def memory_names(self) -> frozenset[str]:
        return frozenset(name for name in self.record["memory"] if f"memory.{name}" not in self._absent)

    def call_rows(self, name: str) -> Rows | None:
        """The parameters of a function or constructor; None where the vendor publishes none."""
        record = self.record
        found = (
            record["classes"][name]["call"] if name in record["classes"] else record["functions"].get(name)
        )
        return list(found) if found is not None else None


def signature(rows: Rows | None) -> inspect.Signature | None:
    if rows is None:
        return None
    empty = inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(name, _KINDS[kind], default=None if default else empty)
            for name, kind, default in rows
        ]
    )


def guarded(function: Callable[..., object], rows: Rows | None) -> Callable[..., object]:
    """``function``, refusing what the vendor's would refuse, and called positionally."""
    real = signature(rows)
    if real is None:
        return function

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        bound = real.bind(*args, **kwargs)
        return function(*bound.args, **bound.kwargs)

    return call


def strict_class(surface: Surface, name: str, model: type) -> type:
    """``model`` under the vendor's name, with the vendor's constructor and methods and no others."""
    record = surface.record["classes"][name]
    public = {key for key in dir(model) if not key.startswith("_")}
    methods = {key for key in public if inspect.isroutine(getattr(model, key))}
    if extra := methods - set(record["methods"]):
        raise SurfaceError(f"{surface.module}.{name} has no {', '.join(sorted(extra))}")
    real = signature(record["call"])

    def create(cls: type, *args: object, **kwargs: object) -> object:
        bound = (args, kwargs) if real is None else (lambda b: (b.args, b.kwargs))(real.bind(*args, **kwargs))
        made: object = object.__new__(cls)
        model.__init__(made, *bound[0], **bound[1])  # type: ignore[misc]
        return made

    members: dict[str, object] = {"__new__": create, "__init__": lambda self, *args, **kwargs: None}
    if real is not None:
        members["__signature__"] = real
    for key in methods:
        found = inspect.getattr_static(model, key)
        if isinstance(found, staticmethod):
            continue
        own = record["methods"][key]
        rows = None if own is None else [["self", "positional_only", False], *own]
        members[key] = guarded(found, rows)
    return type(name, (model,), members)


def _unmodelled(module: str, name: str) -> Callable[..., object]:
    def refuse(*args: object, **kwargs: object) -> object:
        raise NotImplementedError(f"{module}.{name} is real, and this double does not model it")

    return refuse


def strict_module(surface: Surface, model: object, classes: Mapping[str, type]) -> ModuleType:
    """A module with those of ``model``'s methods and ``classes`` that the vendor has in this version.

    Raises:
        SurfaceError: ``classes`` has one that the vendor never had.
    """
    module = ModuleType(surface.module)
    for name, one in classes.items():
        if name not in surface.record["classes"]:
            raise SurfaceError(f"{surface.module} has no class {name}")
        if name in surface.names:
            setattr(module, name, strict_class(surface, name, one))
    for name in surface.names:
        if name not in classes:
            found = getattr(model, name, _unmodelled(surface.module, name))
            setattr(module, name, guarded(found, surface.call_rows(name)) if callable(found) else found)
    if memory := surface.memory_names():
        inner = ModuleType(f"{surface.module}.memory")
        for name in memory:
            found = getattr(model, name, _unmodelled(inner.__name__, name))
            setattr(inner, name, guarded(found, surface.record["memory"][name]))
        module.memory = inner  # type: ignore[attr-defined]
    return module
