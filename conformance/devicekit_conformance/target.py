"""Which backend is judged, as users write it, and how to find it again in another process."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit.contract.manifest import Manifest
    from devicekit.registry.candidates import Candidate

MANIFEST_ATTRIBUTE = "manifest"


class UsageError(Exception):
    """The command was given something that cannot be judged."""


@dataclass(frozen=True)
class Target:
    """A backend by its installed name, by ``package.module:attribute``, or by ``path/to/file.py:attribute``.

    A backend that is not installed needs a manifest all the same: ``backend.toml`` beside its module, or a
    ``devicekit.Manifest`` as the attribute ``manifest`` of its class.
    """

    address: str
    probe: str | None = None  # "package.module:attribute" of a probe that stands in for the suite's own

    @property
    def installed(self) -> bool:
        return ":" not in self.address

    def check(self) -> None:
        """Find out whether the target exists, importing nothing of it.

        Raises:
            UsageError: nothing can be judged; the text says what to write instead.
        """
        if self.installed:
            from devicekit.registry import discover

            names = sorted({candidate.name for candidate in discover()})
            if self.address not in names:
                listed = ", ".join(names) or "none"
                raise UsageError(
                    f"No backend {self.address!r} is installed (installed: {listed}). An uninstalled one is "
                    "written 'package.module:Class' or 'path/to/file.py:Class'."
                )
            return
        module, attribute = self.address.rsplit(":", 1)
        if not attribute or not module:
            raise UsageError(f"A backend is written 'name' or 'package.module:Class', not {self.address!r}.")
        found = (
            Path(module).is_file() if module.endswith(".py") else _top_level_exists(module.partition(".")[0])
        )
        if not found:
            raise UsageError(f"There is no module {module!r} to take the backend {attribute!r} from.")

    def candidate(self) -> Candidate:
        """What the registry would find. Imports the backend's module unless it is installed by name.

        Raises:
            UsageError: the manifest, or the attribute, is not there.
            DeviceKitError: the manifest is wrong.
        """
        from devicekit.registry import candidates, discover

        if self.installed:
            return next(one for one in discover() if one.name == self.address)
        factory, module = load_object(self.address)
        if not callable(factory):
            raise UsageError(
                f"{self.address} is not a class. Workers make their own instances, so give the class."
            )
        manifest = _manifest_of(factory, module)
        for one in candidates.registered():
            if one.name == manifest.name:
                return one
        return candidates.register_backend(factory, manifest)


def load_object(address: str) -> tuple[Callable[[], object], ModuleType]:
    """The object behind ``module:attribute`` or ``file.py:attribute``, and the module that holds it."""
    name, attribute = address.rsplit(":", 1)
    module = _load_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part)
    return found, module  # type: ignore[return-value]  # the caller checks that it can be called


def _load_file(path: Path) -> ModuleType:
    name = f"devicekit_conformance_target_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _manifest_of(factory: object, module: ModuleType) -> Manifest:
    from devicekit.contract.manifest import FILE_NAME, Manifest

    own = getattr(factory, MANIFEST_ATTRIBUTE, None)
    if isinstance(own, Manifest):
        return own
    folder = Path(module.__file__ or ".").parent
    if not (folder / FILE_NAME).is_file():
        raise UsageError(
            f"The backend has no manifest: neither {folder / FILE_NAME} nor a devicekit.Manifest as its class's "
            f"attribute {MANIFEST_ATTRIBUTE!r}."
        )
    return Manifest.read(folder / FILE_NAME)


def _top_level_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
