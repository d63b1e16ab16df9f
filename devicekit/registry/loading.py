"""Takes one candidate from its manifest to a checked backend. A failure is final, and raised again each time."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from devicekit.contract.errors import (
    BackendLoadError,
    BrokenDistribution,
    DeviceKitError,
    TorchImportError,
)
from devicekit.registry.candidates import Candidate, Stage, registered, roll_back_registrations
from devicekit.registry.locking import registry_lock
from devicekit.registry.opened import OpenedBackend
from devicekit.registry.requirements import check_allowed, check_requirements
from devicekit.registry.torch_import import require_torch
from devicekit.registry.validation import check_hooks


class LoadFailure(Exception):
    """Carries the stage together with the error; never leaves the registry."""

    def __init__(self, stage: Stage, error: DeviceKitError) -> None:
        super().__init__(str(error))
        self.stage = stage
        self.error = error


_outcomes: dict[Candidate, OpenedBackend | LoadFailure] = {}
_loading: list[Candidate] = []


def load(candidate: Candidate) -> OpenedBackend:
    """Import, construct and check a plugin, once per process.

    Raises:
        DeviceKitError: whatever went wrong, the same object each time.
    """
    try:
        return load_staged(candidate)
    except LoadFailure as failure:
        # The same object each time, but not with the frames of every earlier time.
        raise failure.error.with_traceback(None) from failure.error.__cause__


def load_staged(candidate: Candidate) -> OpenedBackend:
    """As `load`, raising `LoadFailure` so that the stage is known."""
    # These two are judged anew each time, so that a repaired file or a changed setting counts.
    if candidate.error is not None:
        found = candidate.manifest is not None or isinstance(candidate.error, BrokenDistribution)
        raise LoadFailure(Stage.FOUND if found else Stage.MANIFEST, candidate.error)
    try:
        check_allowed(candidate)
    except DeviceKitError as error:
        raise LoadFailure(Stage.VERSION, error) from error
    with registry_lock:
        _forget_unregistered()
        outcome = _outcomes.get(candidate)
        if outcome is None:
            if candidate in _loading:
                raise LoadFailure(Stage.IMPORT, _reentered(candidate))
            _loading.append(candidate)
            try:
                outcome = _load(candidate)
            except LoadFailure as failure:
                outcome = failure
            finally:
                _loading.remove(candidate)
            _outcomes[candidate] = outcome
    if isinstance(outcome, LoadFailure):
        raise LoadFailure(outcome.stage, outcome.error)
    return outcome


@contextmanager
def _looking() -> Iterator[None]:
    """A block without Python 3.13's warning about reading a ``partial``: attributes are only read here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"functools\.partial will be", category=FutureWarning)
        yield


def _load(candidate: Candidate) -> OpenedBackend:
    manifest = candidate.manifest
    if manifest is None:
        raise ValueError(f"Candidate {candidate.label} has neither a manifest nor an error.")
    try:
        contracts = check_requirements(candidate)
    except DeviceKitError as error:
        raise LoadFailure(Stage.VERSION, error) from error
    before = registered()
    try:
        plugin = _construct(candidate)
        try:
            with _looking():
                check_hooks(plugin, candidate)
                return OpenedBackend(candidate, manifest, contracts[0], plugin)
        except DeviceKitError as error:
            raise LoadFailure(Stage.HOOKS, error) from error
        except Exception as cause:  # an object whose __dir__ or attributes raise
            raise _failed(Stage.HOOKS, candidate, "could not be inspected", cause) from cause
    except BaseException:
        roll_back_registrations(before)
        raise


def _construct(candidate: Candidate) -> object:
    factory: object = candidate.factory
    if factory is None:
        _require_torch(candidate)
        factory = _attempt(
            candidate, f"could not be imported from {candidate.target}", _import_target(candidate)
        )
    if not callable(factory):
        return factory  # a module with hooks, or a ready-made object
    return _attempt(candidate, f"could not be constructed by calling {candidate.target}", factory)


def _require_torch(candidate: Candidate) -> None:
    """Import torch before the plugin, so that a failure of torch itself is the same for every candidate."""
    try:
        require_torch()
    except TorchImportError as error:
        own = TorchImportError(
            f"Backend {candidate.label} could not be imported: {error}", backend=candidate.name
        )
        own.__cause__ = error.__cause__
        raise LoadFailure(Stage.IMPORT, own) from error


def _attempt(candidate: Candidate, what: str, action: Callable[[], object]) -> object:
    try:
        return action()
    except KeyboardInterrupt:
        raise
    except BaseException as cause:  # a plugin may raise SystemExit or a driver's own BaseException
        raise _failed(Stage.IMPORT, candidate, what, cause) from cause


def _import_target(candidate: Candidate) -> Callable[[], object]:
    module_name, _, attribute = candidate.target.partition(":")

    def resolve() -> object:
        found: object = importlib.import_module(module_name)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
        return found

    return resolve


def _failed(stage: Stage, candidate: Candidate, what: str, cause: BaseException) -> LoadFailure:
    error = BackendLoadError(
        f"Backend {candidate.label} {what}: {type(cause).__name__}: {cause}", backend=candidate.name
    )
    error.__cause__ = cause
    return LoadFailure(stage, error)


def _reentered(candidate: Candidate) -> BackendLoadError:
    return BackendLoadError(
        f"Backend {candidate.label} asked devicekit for itself while it was being imported. "
        "A plugin must not select or open a backend at import time.",
        backend=candidate.name,
    )


def _forget_unregistered() -> None:
    """Drop backends that were registered in this process and taken back since."""
    current = registered()
    for candidate in [one for one in _outcomes if one.factory is not None and one not in current]:
        del _outcomes[candidate]
