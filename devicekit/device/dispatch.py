"""Checks every call of a backend's hook, so that an error names the backend and the hook.

`guarded` answers a backend with every hook of the contract, present or not. Each hook of it is one plain Python
frame around the vendor's function: what the function raises gets the hook's name, and a result that the contract
does not allow is refused. Three shapes of that frame are written out, because one that names its argument costs
half of one that takes ``*arguments``, and nearly every hook takes an index and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NoReturn, cast

import torch

from devicekit.contract.errors import DeviceKitError, HookError, HookResultError, UnsupportedHook
from devicekit.contract.hooks import HOOKS, BackendSpec
from devicekit.contract.records import ErrorKind
from devicekit.contract.spec import HookKind, HookSpec
from devicekit.contract.text import shown
from devicekit.device.results import RECORDS, Problem, problem_finder, quick_type
from devicekit.registry.opened import OpenedBackend

_Function = Callable[..., object]

_UNKNOWN = {kind.__name__: kind() for kind in RECORDS}


def guarded(backend: OpenedBackend) -> BackendSpec:
    """The backend's hooks as they stand now, each called as the contract's newest version says, by position.

    A hook that the backend lacks does what its kind says: an ordering one raises, a releasing one does nothing,
    an observing one answers that the value is unknown.

    The hooks raise:
        UnsupportedHook: the backend lacks the hook, and the hook is an ordering one.
        HookError: the hook raised. Out of memory keeps its type.
        HookResultError: it returned what the contract does not allow.
    """
    hooks = {name: _guard(backend, spec) for name, spec in HOOKS.items()}
    return cast("BackendSpec", SimpleNamespace(**hooks))


def _guard(backend: OpenedBackend, spec: HookSpec) -> _Function:
    function = backend.function(spec.name)
    if function is None:
        return _missing(backend, spec)
    if any(name not in backend.takes(spec.name) for name in spec.added):
        return _withholding(_many(function, backend, spec), backend, spec)
    if spec.parameters == ("index",):
        return _with_index(function, backend, spec)
    return _many(function, backend, spec) if spec.parameters else _without_arguments(function, backend, spec)


def _with_index(function: _Function, backend: OpenedBackend, spec: HookSpec) -> _Function:
    hook, kind, checked = spec.name, quick_type(spec.returns), _check(backend, spec)

    def call(index: int) -> object:
        try:
            found = function(index)
        except (
            Exception,
            SystemExit,
        ) as error:  # SystemExit from a driver's wrapper is a fault like any other
            return raise_as_hook_error(backend, hook, error)
        return found if type(found) is kind else checked(found)

    return call


def _without_arguments(function: _Function, backend: OpenedBackend, spec: HookSpec) -> _Function:
    hook, kind, checked = spec.name, quick_type(spec.returns), _check(backend, spec)

    def call() -> object:
        try:
            found = function()
        except (Exception, SystemExit) as error:
            return raise_as_hook_error(backend, hook, error)
        return found if type(found) is kind else checked(found)

    return call


def _many(function: _Function, backend: OpenedBackend, spec: HookSpec) -> _Function:
    hook, kind, checked = spec.name, quick_type(spec.returns), _check(backend, spec)

    def call(*arguments: object) -> object:
        try:
            found = function(*arguments)
        except (Exception, SystemExit) as error:
            return raise_as_hook_error(backend, hook, error)
        return found if type(found) is kind else checked(found)

    return call


def _withholding(function: _Function, backend: OpenedBackend, spec: HookSpec) -> _Function:
    """For a plugin older than an appended argument: leave it out, where it asks for nothing."""
    withheld = [name for name in spec.added if name not in backend.takes(spec.name)]
    handed_on = len(backend.parameters(spec.name))

    def call(*arguments: object) -> object:
        given = dict(zip(spec.parameters, arguments, strict=True))
        for name in withheld:
            if given[name] is not None and given[name] is not False:
                _refuse_argument(backend, spec, name)
        return function(*arguments[:handed_on])

    return call


def _check(backend: OpenedBackend, spec: HookSpec) -> Callable[[object], object]:
    """What looks at results that are not of the quick type: returns them, or raises HookResultError."""
    problem_of = problem_finder(spec.returns)

    def checked(found: object) -> object:
        if spec.returns == "None":
            return None  # whatever the vendor returned
        problem = problem_of(found)
        return found if problem is None else _refuse_result(backend, spec, found, problem)

    return checked


def _missing(backend: OpenedBackend, spec: HookSpec) -> _Function:
    if spec.kind is HookKind.OBSERVING:
        unknown = _UNKNOWN.get(spec.returns)
        return lambda *_: unknown
    if spec.kind is HookKind.RELEASING:
        return lambda *_: None

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


def _refuse_result(backend: OpenedBackend, spec: HookSpec, found: object, problem: Problem) -> NoReturn:
    within = f", in which {problem}" if problem else ""
    raise HookResultError(
        f"{spec.name} of backend {backend.label} returned {shown(found)} ({type(found).__name__}){within}; the "
        f"contract says {spec.returns}. This is a fault of the plugin.",
        backend=backend.name,
        hook=spec.name,
    )


def raise_as_hook_error(backend: OpenedBackend, hook: str, error: BaseException) -> NoReturn:
    """Raise ``error`` under the hook's name; out of memory, and devicekit's own errors, keep their type."""
    # By the type alone: isinstance would ask the object, which may fail.
    if issubclass(type(error), DeviceKitError) or classify(backend, error) is ErrorKind.OUT_OF_MEMORY:
        raise error
    raise HookError(
        f"{hook} of backend {backend.label} failed: {type(error).__name__}: {_words_of(error)}",
        backend=backend.name,
        hook=hook,
    ) from error


def _words_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # what cannot be printed must not replace what failed
        return "its message cannot be printed"


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
    return ErrorKind.OUT_OF_MEMORY if issubclass(type(error), torch.OutOfMemoryError) else None
