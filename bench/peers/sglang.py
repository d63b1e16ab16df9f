"""SGLang: its allocator of token slots, with pages of one token."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType

from bench.harness import cpu_seconds
from bench.peers.peer import Peer

NAME = "SGLang"
STUBBED = "triton, where it is not installed; the memory that slots are of"


class _Stub(ModuleType):
    """A module of which every name is there and does nothing: decorators give back what they are put on."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub(f"{self.__name__}.{name}")

    def __call__(self, *given: object, **named: object) -> object:
        return given[0] if given and callable(given[0]) else self


def load() -> Peer:
    """The peer. Raises ImportError, or whatever its import raises, if it cannot be run here."""
    if importlib.util.find_spec("triton") is None:
        for name in ("triton", "triton.language"):
            stub = sys.modules[name] = _Stub(name)
            stub.__spec__, stub.__path__ = importlib.machinery.ModuleSpec(name, None), []
    import sglang.srt.mem_cache.allocator  # noqa: F401

    return Peer(NAME, version("sglang"), STUBBED, {"pages": _pages})


def _pages(count: int) -> Callable[[], float]:
    """``count`` slots in and out, of 100,000."""
    import torch
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

    pool = TokenToKVPoolAllocator(100_000, torch.float32, "cpu", None, need_sort=False)

    def once() -> None:
        pool.free(pool.alloc(count))

    return lambda: cpu_seconds(once, 200)
