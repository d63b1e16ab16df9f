"""Lets a package export names whose modules are imported when a name is first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType


def front_door(
    package: str, homes: Mapping[str, Sequence[str]], *, extra: str | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``.

    Args:
        package: its name.
        homes: the names that each module gives to it.
        extra: what to install where a module needs a package that is not there.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> object:
        if (home := home_of.get(name)) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found: object = getattr(_module(home), name)
        setattr(sys.modules[package], name, found)
        return found

    def _module(home: str) -> ModuleType:
        try:
            return importlib.import_module(home)
        except ModuleNotFoundError as error:
            if extra is None or (error.name or "").partition(".")[0] in ("", "devicekit"):
                raise
            needed = f"{package} needs {error.name}: pip install 'devicekit[{extra}]'"
            raise ModuleNotFoundError(needed, name=error.name) from error

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of})

    return find, listed
