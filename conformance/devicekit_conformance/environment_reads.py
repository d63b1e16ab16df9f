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
    """The files, or folders of packages, in which its hooks are. What it has from devicekit is not its own."""
    for base in type(plugin).__mro__:
        package, _, within = base.__module__.partition(".")
        if package == "devicekit" and base is not type(plugin):
            continue
        for one in vars(base).values():
            code = getattr(one, "__code__", None)
            if code is not None and hasattr(one, "devicekit_impl"):
                file = Path(code.co_filename)
                yield str(file.parent if within and package != "devicekit" else file)
                break
