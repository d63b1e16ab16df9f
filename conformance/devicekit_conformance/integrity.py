"""Whether the suite that decides is still the suite that was written, after a backend's code ran beside it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType, MappingProxyType

_OWN = "devicekit_conformance"
_BACKENDS = (f"{_OWN}.selftest", f"{_OWN}.simulated", f"{_OWN}.use_and_exit", f"{_OWN}.import_elsewhere")
# What a verdict rests on outside the suite. Patching any of these is patching every program in the process.
_STANDARD: Mapping[str, tuple[str, ...]] = {
    "builtins": ("isinstance", "getattr", "len", "repr", "str", "open", "print", "hasattr", "__import__"),
    "json": ("dumps", "loads", "dump", "load"),
    "os": (
        "_exit",
        "fork",
        "kill",
        "killpg",
        "getpid",
        "waitpid",
        "write",
        "read",
        "close",
        "dup2",
        "setsid",
    ),
    "sys": ("exit", "settrace", "setprofile"),
    "atexit": ("register", "unregister"),
    "signal": ("signal", "getsignal", "raise_signal"),
    "socket": ("socket", "socketpair"),
    "hashlib": ("blake2b", "sha256"),
    "hmac": ("compare_digest",),
    "subprocess": ("Popen", "run"),
    "threading": ("Thread", "Event", "Lock"),
    "time": ("time", "monotonic", "perf_counter", "process_time", "sleep"),
    "traceback": ("extract_tb", "format_exc"),
    "gc": ("collect",),
}


class Guard:
    """A picture of the suite in this process, taken before any backend is imported."""

    def __init__(self) -> None:
        # References are kept: an identity is good for as long as its object lives.
        self._before = dict(_parts())

    def changed(self) -> list[str]:
        """The names that are no longer what they were."""
        now = dict(_parts())
        missing = object()
        return sorted(name for name, part in self._before.items() if now.get(name, missing) is not part)


@functools.cache
def guard() -> Guard:
    """The picture of this process, or of the one that it was forked from, in which no backend is either."""
    return Guard()


def _parts() -> Iterator[tuple[str, object]]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == _OWN and not name.startswith(_BACKENDS) and module is not None:
            for key, value in list(vars(module).items()):
                if not key.startswith("__"):
                    yield from _within(f"{name}.{key}", value, name)
    for name, wanted in _STANDARD.items():
        standard = sys.modules.get(name)
        for key in wanted if standard is not None else ():
            yield f"{name}.{key}", getattr(standard, key, None)


def _within(where: str, value: object, module: str) -> Iterator[tuple[str, object]]:
    yield where, value
    if isinstance(value, FunctionType):
        yield f"{where}.__code__", value.__code__
        yield f"{where}.__defaults__", value.__defaults__
    elif isinstance(value, type) and value.__module__ == module:
        for key, member in list(vars(value).items()):
            if isinstance(member, (FunctionType, property, staticmethod, classmethod)):
                yield f"{where}.{key}", member
                if isinstance(member, FunctionType):
                    yield f"{where}.{key}.__code__", member.__code__
    elif isinstance(value, (dict, MappingProxyType)):
        for item, member in list(value.items()):
            if isinstance(item, str):
                yield f"{where}[{item!r}]", member
