"""What may become a backend: an installed distribution's entry point, or a class registered in this process."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from devicekit.contract.errors import DeviceKitError, DuplicateBackend
from devicekit.contract.manifest import Manifest
from devicekit.contract.text import shown
from devicekit.registry.locking import registry_lock


class Stage(enum.Enum):
    """How far a candidate got. Each stage is entered only after the one before it succeeded."""

    FOUND = "found"  # an entry point or an in-process registration exists, and nothing else bears its name
    MANIFEST = "manifest"  # backend.toml is read and checked
    VERSION = "version"  # contract, torch and vendor ranges are met
    IMPORT = "import"  # the plugin is imported and constructed
    HOOKS = "hooks"  # every hook is known and has the contract's signature
    PROBE = "probe"  # is_available() and device_count() answered in time


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that was found, before anything of it is imported."""

    name: str
    distribution: str  # "in process" for a registered class
    version: str | None  # the distribution's
    target: str  # "package.module:attribute"
    manifest: Manifest | None
    error: DeviceKitError | None = None  # why it cannot go on: manifest or name
    factory: Callable[[], object] | None = None  # set for a registered class; None: import `target`
    path: Path | None = None  # of the manifest of an installed backend
    serial: int = 0  # tells apart two registrations of one factory

    @property
    def label(self) -> str:
        """Name and origin, as error messages give them."""
        origin = self.distribution if self.version is None else f"{self.distribution} {self.version}"
        return f"{shown(self.name)} ({origin})"


IN_PROCESS = "in process"

_registered: dict[str, Candidate] = {}
_registrations = 0


def register_backend(factory: Callable[[], object], manifest: Manifest) -> Candidate:
    """Offer a backend without packaging it, for notebooks and tests.

    Args:
        factory: a class or function without arguments that returns the object with the hooks.
        manifest: what ``backend.toml`` would say.

    Raises:
        DuplicateBackend: a registered backend has this name.
    """
    target = f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', '?')}"
    with registry_lock:
        serial = _registrations + 1
        candidate = Candidate(
            manifest.name, IN_PROCESS, None, target, manifest, factory=factory, serial=serial
        )
        if manifest.name in _registered:
            raise DuplicateBackend(
                f"A backend {shown(manifest.name)} is already registered in this process "
                f"({_registered[manifest.name].target}). Call unregister_backend({shown(manifest.name)}) first.",
                backend=manifest.name,
            )
        _replace_registered({**_registered, manifest.name: candidate})
    return candidate


def unregister_backend(name: str) -> None:
    """Take back a `register_backend`. Devices that are open keep working; the name is free again."""
    with registry_lock:
        if name in _registered:
            _replace_registered({key: one for key, one in _registered.items() if key != name})


def registered() -> tuple[Candidate, ...]:
    """Backends registered in this process, in order."""
    return tuple(_registered.values())


def registrations() -> int:
    """A number that changes whenever a backend is registered or unregistered."""
    return _registrations


def roll_back_registrations(earlier: tuple[Candidate, ...]) -> None:
    """Return to what `registered` answered earlier, after a plugin failed half-way."""
    if registered() != earlier:
        _replace_registered({candidate.name: candidate for candidate in earlier})


def _replace_registered(backends: dict[str, Candidate]) -> None:
    global _registered, _registrations
    _registered = backends
    _registrations += 1
