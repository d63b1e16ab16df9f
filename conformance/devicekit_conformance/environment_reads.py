"""Whether a backend's own code reads the environment: only its own, for libraries that it calls may."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["reads_of"]

_BETWEEN = ("os", "posixpath", "collections.abc", "_collections_abc")  # whose code asks for somebody else


@contextlib.contextmanager
def reads_of(plugin: object) -> Iterator[list[str]]:
    """Inside, note the variables that the module or package of ``plugin`` asks for, by name."""
    own = tuple(_own_code(plugin))
    kind, seen = type(os.environ), list[str]()
    honest = kind.__getitem__

    def noting(self: os._Environ[str], key: str) -> str:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__") in _BETWEEN:
            frame = frame.f_back
        if frame.f_code.co_filename.startswith(own):
            seen.append(str(key))
        return honest(self, key)

    kind.__getitem__ = noting  # type: ignore[method-assign]  # put back below
    try:
        yield seen
    finally:
        kind.__getitem__ = honest  # type: ignore[method-assign]


def _own_code(plugin: object) -> Iterator[str]:
    """The files and folders of the classes that have its hooks. What it has from devicekit is not its own."""
    for base in type(plugin).__mro__:
        package, _, within = base.__module__.partition(".")
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if file is None or not any(hasattr(one, "devicekit_impl") for one in vars(base).values()):
            continue
        if package != "devicekit":
            yield str(Path(file).parent) if within else file
        elif base is type(plugin):
            yield file
