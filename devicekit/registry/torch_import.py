"""Imports torch once, and remembers why that failed: a second try in one process fails for reasons of its own."""

from __future__ import annotations

import importlib
import sys

from devicekit.contract.errors import TorchImportError
from devicekit.registry.installed import printable

_failure: TorchImportError | None = None


def require_torch() -> None:
    """Import torch, if it is not there.

    Raises:
        TorchImportError: it cannot be imported. The first try's cause is chained, however often this is asked.
    """
    global _failure
    if "torch" in sys.modules and _failure is None:
        return
    if _failure is None:
        try:
            importlib.import_module("torch")
        except KeyboardInterrupt:
            raise
        except BaseException as cause:  # an extension of torch's may raise what it likes
            _failure = TorchImportError(f"torch cannot be imported: {_told(cause)} See: devicekit doctor")
            _failure.__cause__ = cause
        else:
            return
    raise _failure.with_traceback(None) from _failure.__cause__


def _told(error: BaseException) -> str:
    """An error together with its first cause, which is why an extension failed."""
    bottom, passed = error, {id(error)}
    while (below := bottom.__cause__ or bottom.__context__) is not None and id(below) not in passed:
        bottom = below
        passed.add(id(below))
    said = f"{type(error).__name__}: {printable(str(error))}"
    return said if bottom is error else f"{said} (after {type(bottom).__name__}: {printable(str(bottom))})"
