"""Compiles a backend's hooks into the plain callables that fill a device's slots.

A slot's callable adds one Python frame to the vendor's function: enough to give a raising hook its name and to
refuse a result the contract does not allow, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

from devicekit.contract.errors import DeviceKitError, HookError, HookResultError, UnsupportedHook
from devicekit.contract.hooks import HOOKS
from devicekit.contract.records import ErrorKind
from devicekit.registry.opened import OpenedBackend

_T = TypeVar("_T")


def call_on(backend: OpenedBackend, hook: str, index: int) -> Callable[..., object]:
    """The hook with the device's index in front of its other arguments."""
    function = backend.function(hook)
    if function is None:
        return unsupported(backend, hook)

    def call(*arguments: object) -> object:
        try:
            return function(index, *arguments)
        except Exception as error:
            raise_as_hook_error(backend, hook, error)

    def call_alone() -> object:
        try:
            return function(index)
        except Exception as error:
            raise_as_hook_error(backend, hook, error)

    return call_alone if HOOKS[hook].parameters == ("index",) else call


def call(backend: OpenedBackend, hook: str) -> Callable[..., object]:
    """The hook with its own arguments, for hooks that take no index."""
    function = backend.function(hook)
    if function is None:
        return unsupported(backend, hook)

    def call(*arguments: object) -> object:
        try:
            return function(*arguments)
        except Exception as error:
            raise_as_hook_error(backend, hook, error)

    return call


def observe(
    backend: OpenedBackend, hook: str, kinds: tuple[type, ...], unknown: _T, index: int | None = None
) -> Callable[[], _T]:
    """The hook's value if it is one of ``kinds``, or ``unknown`` where the backend lacks the hook.

    Raises (when called):
        HookError: the hook raised.
        HookResultError: it returned something else.
    """
    function = backend.function(hook)
    if function is None:
        return lambda: unknown
    arguments = () if index is None else (index,)

    def read() -> _T:
        try:
            found = function(*arguments)
        except Exception as error:
            raise_as_hook_error(backend, hook, error)
        # By exact type: a bool is an int, and a tensor scalar compares equal to one.
        if type(found) in kinds:
            return found  # type: ignore[return-value]  # the kinds are those of _T
        return refuse_result(backend, hook, found, kinds)

    return read


def unsupported(backend: OpenedBackend, hook: str) -> Callable[..., NoReturn]:
    """A callable that says the backend lacks the hook."""

    def refuse(*_: object) -> NoReturn:
        raise UnsupportedHook(
            f"Backend {backend.label} does not implement {HOOKS[hook].signature} of the device contract. "
            f"Ask first with device.supports({hook!r}).",
            backend=backend.name,
            hook=hook,
        )

    return refuse


def refuse_result(backend: OpenedBackend, hook: str, found: object, kinds: tuple[type, ...]) -> NoReturn:
    """Raise `HookResultError` for a result the contract does not allow."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise HookResultError(
        f"{hook} of backend {backend.label} returned {found!r} ({type(found).__name__}); the contract says "
        f"{expected}. This is a fault of the plugin.",
        backend=backend.name,
        hook=hook,
    )


def raise_as_hook_error(backend: OpenedBackend, hook: str, error: Exception) -> NoReturn:
    """Raise ``error`` under the hook's name; out of memory, and devicekit's own errors, keep their type."""
    if isinstance(error, DeviceKitError) or is_out_of_memory(backend, error):
        raise error
    raise HookError(
        f"{hook} of backend {backend.label} failed: {type(error).__name__}: {error}",
        backend=backend.name,
        hook=hook,
    ) from error


def is_out_of_memory(backend: OpenedBackend, error: BaseException) -> bool:
    """Whether the backend itself calls ``error`` out of memory. Never raises."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    classify = backend.function("classify_error")
    if classify is None:
        return False
    try:
        return classify(error) is ErrorKind.OUT_OF_MEMORY
    except Exception:  # a classifier that fails must not replace the error it was asked about
        return False
