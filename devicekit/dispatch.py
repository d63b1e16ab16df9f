"""Compiles a backend's hooks into the methods of a device.

A compiled method is one Python frame around the vendor's function: enough to give a raising hook its name, to put
the index in front, and to refuse a result the contract does not allow. Its source is generated, because a frame
that names its arguments is called in half the time of one that takes ``*arguments``, and it is a method of a class
because the interpreter calls one faster than a callable held by the instance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import CodeType, NoneType
from typing import NoReturn, cast

import torch

from devicekit.contract.errors import DeviceKitError, HookError, HookResultError, UnsupportedHook
from devicekit.contract.hooks import HOOKS
from devicekit.contract.records import (
    DeviceProperties,
    ErrorKind,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
)
from devicekit.contract.spec import HookKind, HookSpec
from devicekit.registry.opened import OpenedBackend

_RECORDS = (MemoryStats, MemoryInfo, HostMemoryStats, DeviceProperties)

# What a backend may return, by the contract's annotation. By exact type where a look-alike misleads: a bool is an
# int, and a tensor scalar compares equal to one. For the rest, only that there is a result.
_EXACT: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "str": (str,),
    "str | None": (str, NoneType),
    "torch.profiler.ProfilerActivity | None": (torch.profiler.ProfilerActivity, NoneType),
    **{record.__name__: (record,) for record in _RECORDS},
}
_INSTANCE: dict[str, tuple[type, ...]] = {
    "torch.Tensor": (torch.Tensor,),
    "Sequence[Mapping[str, object]] | None": (Sequence, NoneType),
    "Sequence[ProcessMemory] | None": (Sequence, NoneType),
}
_UNKNOWN = {record.__name__: record() for record in _RECORDS}


def compile_method(backend: OpenedBackend, hook: str, index: int | None = None) -> Callable[..., object]:
    """One hook as a method: a function whose first parameter is the device.

    A releasing hook's method answers whether there was anything to call; an observing hook's, if the backend lacks
    it, that the value is unknown.

    Args:
        backend: whose hook.
        hook: its name in the contract.
        index: put in the place of the hook's ``index``, which callers then leave out.

    The method raises:
        UnsupportedHook: the backend lacks the hook, and the hook is an ordering one.
        HookError: the hook raised. Out of memory keeps its type.
        HookResultError: it returned what the contract does not allow.
    """
    spec = HOOKS[hook]
    function = backend.function(hook)
    if function is None:
        return _missing(backend, spec)
    taken = tuple(name for name in spec.parameters if index is None or name != "index")
    passed = tuple(
        str(index) if name == "index" and index is not None else name for name in backend.parameters(hook)
    )
    kinds = _EXACT.get(spec.returns) or _INSTANCE.get(spec.returns) or ()
    namespace: dict[str, object] = {
        "function": function,
        "kind": kinds[0] if kinds else None,
        "kinds": kinds,
        "failed": functools.partial(raise_as_hook_error, backend, hook),
        "refused": functools.partial(_refuse_result, backend, spec),
    }
    # What the plugin predates: to leave it out is right only where it asks for nothing.
    withheld = tuple(name for name in spec.added if name not in backend.takes(hook))
    if withheld:
        namespace["withhold"] = functools.partial(_refuse_argument, backend, spec)
    exec(_code(hook, taken, passed, _ending(spec), withheld), namespace)
    return cast("Callable[..., object]", namespace[hook])


def _ending(spec: HookSpec) -> str:
    """What follows the vendor's call."""
    if spec.kind is HookKind.RELEASING:
        return "return True"
    if spec.returns == "None":
        return "return None"  # whatever the vendor returned
    if spec.returns in _EXACT:
        check = "type(found) is kind" if len(_EXACT[spec.returns]) == 1 else "type(found) in kinds"
    else:
        check = "isinstance(found, kinds)" if spec.returns in _INSTANCE else "found is not None"
    return f"if {check}: return found\n    refused(found)"


@functools.cache
def _code(
    hook: str, taken: tuple[str, ...], passed: tuple[str, ...], ending: str, withheld: tuple[str, ...]
) -> CodeType:
    # SystemExit from a driver's wrapper is a fault like any other; KeyboardInterrupt is the user's.
    checks = "".join(
        f"    if {name} is not None and {name} is not False: withhold({name!r})\n" for name in withheld
    )
    source = f"""\
def {hook}({", ".join(("self", *taken))}):
{checks}\
    try:
        {"" if ending == "return None" else "found = "}function({", ".join(passed)})
    except (Exception, SystemExit) as error:
        failed(error)
    {ending}
"""
    return compile(source, f"<devicekit dispatch of {hook}>", "exec")


def _missing(backend: OpenedBackend, spec: HookSpec) -> Callable[..., object]:
    if spec.kind is HookKind.OBSERVING:
        unknown = _UNKNOWN.get(spec.returns)
        return lambda *_: unknown
    if spec.kind is HookKind.RELEASING:
        return lambda *_: False

    def refuse(*_: object) -> NoReturn:
        raise UnsupportedHook(
            f"Backend {backend.label} does not implement {spec.signature} of the device contract. "
            f"Ask first with device.supports({spec.name!r}).",
            backend=backend.name,
            hook=spec.name,
        )

    return refuse


def _refuse_argument(backend: OpenedBackend, spec: HookSpec, argument: str) -> NoReturn:
    raise UnsupportedHook(
        f"{spec.name} of backend {backend.label} takes no {argument!r}, which came with device contract "
        f"{spec.added[argument]}. Try: pip install --upgrade {backend.candidate.distribution}",
        backend=backend.name,
        hook=spec.name,
    )


def _refuse_result(backend: OpenedBackend, spec: HookSpec, found: object) -> NoReturn:
    raise HookResultError(
        f"{spec.name} of backend {backend.label} returned {found!r} ({type(found).__name__}); the contract says "
        f"{spec.returns}. This is a fault of the plugin.",
        backend=backend.name,
        hook=spec.name,
    )


def raise_as_hook_error(backend: OpenedBackend, hook: str, error: BaseException) -> NoReturn:
    """Raise ``error`` under the hook's name; out of memory, and devicekit's own errors, keep their type."""
    if isinstance(error, DeviceKitError) or classify(backend, error) is ErrorKind.OUT_OF_MEMORY:
        raise error
    raise HookError(
        f"{hook} of backend {backend.label} failed: {type(error).__name__}: {error}",
        backend=backend.name,
        hook=hook,
    ) from error


def classify(backend: OpenedBackend, error: BaseException) -> ErrorKind | None:
    """What the backend says ``error`` means; torch's own type where it says nothing. Never raises."""
    kind: object = None
    function = backend.function("classify_error")
    if function is not None:
        try:
            # First, because an allocation that failed on a lost device is of torch's type as well.
            kind = function(error)
        except Exception:  # a classifier that fails must not replace the error it was asked about
            kind = None
    if isinstance(kind, ErrorKind):
        return kind
    return ErrorKind.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else None
