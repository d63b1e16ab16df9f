"""Old public names: each still works for one release, with a warning that says its new name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping


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
