"""Old public names: each still works for one release, with a warning that says its new name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """A module's ``__getattr__`` for names that have moved.

    Args:
        module: the module in which they used to be.
        names: for each old name, ``package.module:name``.
    """

    def find(name: str) -> object:
        target = names.get(name)
        if target is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = target.partition(":")
        warnings.warn(
            f"{module}.{name} is now {place}.{new}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        found: object = getattr(importlib.import_module(place), new)
        return found

    return find


def renamed_attribute(owner: object, name: str, names: Mapping[str, str]) -> Any:
    """What a class's ``__getattr__`` answers for attributes that have moved.

    Args:
        names: for each old name the new one, or the way to it, as in ``gate.fail``.
    """
    kind, new = type(owner).__name__, names.get(name)
    if new is None:
        raise AttributeError(f"{kind} has no attribute {name!r}")
    warnings.warn(
        f"{kind}.{name} is now .{new}; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
    return attrgetter(new)(owner)
