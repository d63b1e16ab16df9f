"""Imported first by rooms that cannot do without numpy: where there is none, it says which extra has it."""

from __future__ import annotations

try:
    import numpy  # noqa: F401
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "this part of devicekit needs numpy: pip install 'devicekit[engine]'", name="numpy"
    ) from _error
