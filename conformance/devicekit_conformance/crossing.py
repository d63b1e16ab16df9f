"""What ends a block too early, and what is used in another thread than it was made in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["KINDS", "Elsewhere"]


class _Deliberate(Exception):
    """None of anybody's."""


class _DeliberateExit(BaseException):
    """One that "except Exception" lets through."""


KINDS: tuple[type[BaseException], ...] = (
    _Deliberate, RuntimeError, ValueError, torch.OutOfMemoryError, NotImplementedError, _DeliberateExit,
    KeyboardInterrupt, GeneratorExit,
)  # fmt: skip
"""What may be raised in a block; each comes out of it."""


class Elsewhere:
    """A handle whose methods are called in another thread than the one that asks."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._handle, name)

        def call(*arguments: object) -> Any:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(method, *arguments).result()

        return call
