"""Imported first by rooms that cannot do without numpy: where there is none, it says which extra has it."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("numpy") is None:
    raise ModuleNotFoundError(
        "this part of devicekit needs numpy: pip install 'devicekit[engine]'", name="numpy"
    )
