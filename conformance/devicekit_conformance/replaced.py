"""The backend under test with another function in the place of one of its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devicekit_conformance.context import Context

__all__ = ["Replaced"]


class Replaced:
    """A context like another one, in which ``hook`` is ``function``."""

    def __init__(self, context: Context, hook: str, function: Callable[..., object]) -> None:
        self._context, self._hook, self._function = context, hook, function

    def raw_hook(self, name: str) -> Callable[..., object]:
        return self._function if name == self._hook else self._context.raw_hook(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
