"""Takes one candidate from its manifest to a checked plugin object; a failure is final and repeats itself."""

from __future__ import annotations

import importlib
import os
import threading
from dataclasses import dataclass

from packaging.version import Version

from devicekit.contract.errors import BackendLoadError, ConfigurationError, DeviceKitError
from devicekit.contract.manifest import Manifest
from devicekit.registry.candidates import Candidate
from devicekit.registry.requirements import check_requirements
from devicekit.registry.stages import Stage
from devicekit.registry.validation import check_hooks


@dataclass(frozen=True, slots=True)
class LoadedBackend:
    """A plugin that was imported, constructed and found to obey the contract."""

    candidate: Candidate
    manifest: Manifest
    contract: Version  # the version both sides speak
    plugin: object


class LoadFailure(Exception):
    """Carries the stage beside the error; never leaves the registry."""

    def __init__(self, stage: Stage, error: DeviceKitError) -> None:
        super().__init__(str(error))
        self.stage = stage
        self.error = error


_lock = threading.RLock()
_outcomes: dict[tuple[object, ...], LoadedBackend | LoadFailure] = {}
_loading: set[str] = set()


def load(candidate: Candidate) -> LoadedBackend:
    """Import, construct and check a plugin, once per process.

    Raises:
        DeviceKitError: whatever went wrong, the same object each time.
    """
    try:
        return load_staged(candidate)
    except LoadFailure as failure:
        raise failure.error from failure.error.__cause__


def load_staged(candidate: Candidate) -> LoadedBackend:
    """As `load`, raising `LoadFailure` so that the stage is known."""
    if candidate.error is not None:  # found anew by each discovery, so that a repaired file counts
        raise LoadFailure(Stage.FOUND if candidate.manifest else Stage.MANIFEST, candidate.error)
    identity = (candidate.name, candidate.distribution, candidate.version, candidate.target)
    key = (*identity, candidate.factory, candidate.manifest)
    with _lock:
        outcome = _outcomes.get(key)
        if outcome is None:
            if candidate.name in _loading:
                error = BackendLoadError(
                    f"Backend {candidate.label} asked devicekit for itself while it was being imported. "
                    "A plugin must not select or open a backend at import time.",
                    backend=candidate.name,
                )
                raise LoadFailure(Stage.IMPORT, error)
            _loading.add(candidate.name)
            try:
                outcome = _load(candidate)
            except LoadFailure as failure:
                outcome = failure
            finally:
                _loading.discard(candidate.name)
            _outcomes[key] = outcome
    if isinstance(outcome, LoadFailure):
        raise outcome
    return outcome


def _load(candidate: Candidate) -> LoadedBackend:
    manifest = candidate.manifest
    if manifest is None:
        raise ValueError(f"Candidate {candidate.label} has neither a manifest nor an error.")
    try:
        _check_allowed(candidate)
        contract = check_requirements(candidate)
    except DeviceKitError as error:
        raise LoadFailure(Stage.VERSION, error) from error
    plugin = _construct(candidate)
    try:
        check_hooks(plugin, candidate)
    except DeviceKitError as error:
        raise LoadFailure(Stage.HOOKS, error) from error
    return LoadedBackend(candidate, manifest, contract, plugin)


def _check_allowed(candidate: Candidate) -> None:
    listed = os.environ.get("DEVICEKIT_ALLOWED_DISTRIBUTIONS")
    if listed is None or candidate.factory is not None:
        return
    allowed = {name.strip() for name in listed.split(",") if name.strip()}
    if candidate.distribution not in allowed:
        raise ConfigurationError(
            f"Backend {candidate.label} may not be imported: DEVICEKIT_ALLOWED_DISTRIBUTIONS is {listed!r}."
        )


def _construct(candidate: Candidate) -> object:
    try:
        factory = candidate.factory or _import_target(candidate.target)
        return factory() if callable(factory) else factory
    except KeyboardInterrupt:
        raise
    except BaseException as cause:  # a plugin may raise SystemExit or a driver's own BaseException
        error = BackendLoadError(
            f"Backend {candidate.label} could not be imported from {candidate.target}: "
            f"{type(cause).__name__}: {cause}",
            backend=candidate.name,
        )
        error.__cause__ = cause
        raise LoadFailure(Stage.IMPORT, error) from cause


def _import_target(target: str) -> object:
    module_name, _, attribute = target.partition(":")
    found: object = importlib.import_module(module_name)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    return found
