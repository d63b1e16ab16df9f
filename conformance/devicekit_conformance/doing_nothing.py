"""The backend under test with one hook that does nothing, to see whether that hook has anything to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from devicekit_conformance.context import Context

__all__ = ["DoingNothing"]


class DoingNothing:
    """A context like another one, in which ``hook`` returns ``None`` and does nothing else."""

    def __init__(self, context: Context, hook: str) -> None:
        self._context, self._hook = context, hook

    def raw_hook(self, name: str) -> Callable[..., object]:
        return (lambda *arguments: None) if name == self._hook else self._context.raw_hook(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
