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
    module = type(plugin).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    package = module.partition(".")[0]
    own = str(Path(file).parent) if file and "." in module and package != "devicekit" else file
    kind, seen = type(os.environ), list[str]()
    honest = kind.__getitem__

    def noting(self: os._Environ[str], key: str) -> str:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__") in _BETWEEN:
            frame = frame.f_back
        if own is not None and frame.f_code.co_filename.startswith(own):
            seen.append(str(key))
        return honest(self, key)

    kind.__getitem__ = noting  # type: ignore[method-assign]  # put back below
    try:
        yield seen
    finally:
        kind.__getitem__ = honest  # type: ignore[method-assign]
