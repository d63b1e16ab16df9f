"""What may become a backend: an installed distribution's entry point, or a class registered in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from devicekit.contract.errors import DeviceKitError, DuplicateBackend
from devicekit.contract.manifest import Manifest


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

    @property
    def label(self) -> str:
        """Name and origin, as error messages give them."""
        origin = self.distribution if self.version is None else f"{self.distribution} {self.version}"
        return f"{self.name!r} ({origin})"


IN_PROCESS = "in process"

_lock = threading.Lock()
_registered: dict[str, Candidate] = {}


def register_backend(factory: Callable[[], object], manifest: Manifest) -> Candidate:
    """Offer a backend without packaging it, for notebooks and tests.

    Args:
        factory: a class or function without arguments that returns the object with the hooks.
        manifest: what ``backend.toml`` would say.

    Raises:
        DuplicateBackend: a registered backend has this name.
    """
    target = f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', '?')}"
    candidate = Candidate(manifest.name, IN_PROCESS, None, target, manifest, factory=factory)
    with _lock:
        if manifest.name in _registered:
            raise DuplicateBackend(
                f"A backend {manifest.name!r} is already registered in this process "
                f"({_registered[manifest.name].target}). Call unregister_backend({manifest.name!r}) first.",
                backend=manifest.name,
            )
        _registered[manifest.name] = candidate
    return candidate


def unregister_backend(name: str) -> None:
    """Take back a `register_backend`. Devices that are open keep working; the name is free again."""
    with _lock:
        _registered.pop(name, None)


def registered() -> tuple[Candidate, ...]:
    """Backends registered in this process, in order."""
    with _lock:
        return tuple(_registered.values())
