"""Which backend is judged, as users write it, and how to find it again in another process."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit.contract.manifest import Manifest
    from devicekit.registry.candidates import Candidate

MANIFEST_ATTRIBUTE = "manifest"
SETTINGS_FILE = "conformance.toml"  # beside the manifest: what the suite needs to know of this backend


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
    folder: str = field(default_factory=os.getcwd, compare=False)  # where relative files and modules are

    @property
    def installed(self) -> bool:
        return ":" not in self.address

    @property
    def order(self) -> tuple[str, str | None]:
        """Address and probe as a process in any working folder finds them."""
        probe = None if self.probe is None else self._absolute(self.probe)
        return self._absolute(self.address), probe

    @property
    def search_path(self) -> list[str]:
        """Folders in front of ``sys.path``: the current one, where it holds the module that is named."""
        named = [one.rsplit(":", 1)[0] for one in (self.address, self.probe) if one and ":" in one]
        modules = [one.partition(".")[0] for one in named if not one.endswith(".py")]
        return [self.folder] if any(self._here(one) for one in modules) else []

    def _here(self, module: str) -> bool:
        folder = Path(self.folder)
        return (folder / f"{module}.py").is_file() or (folder / module).is_dir()

    def _absolute(self, address: str) -> str:
        module, separator, attribute = address.rpartition(":")
        return f"{Path(self.folder, module)}:{attribute}" if separator and module.endswith(".py") else address

    def with_own_probe(self) -> Target:
        """This target with the probe that the backend names in its ``conformance.toml``, if none was given.

        Raises:
            UsageError: the file is wrong.
        """
        folder = self._manifest_folder() if self.probe is None else None
        path = None if folder is None else folder / SETTINGS_FILE
        if path is None or not path.exists():
            return self
        from devicekit.documents import read_toml
        from devicekit.files import UnreadableFile

        try:
            settings = dict(read_toml(path))
        except UnreadableFile as error:
            raise UsageError(str(error)) from error
        probe = settings.pop("probe", None)
        if settings or not isinstance(probe, str) or ":" not in probe:
            raise UsageError(f"{path} holds one key, probe, written 'package.module:attribute'.")
        return replace(self, probe=probe)

    def _manifest_folder(self) -> Path | None:
        """Where the backend's manifest lies, found without importing anything of the backend."""
        if self.installed:
            from devicekit.registry import discover

            paths = [one.path for one in discover() if one.name == self.address and one.path is not None]
            return paths[0].parent if len(paths) == 1 else None
        module = self.address.rsplit(":", 1)[0]
        if module.endswith(".py"):
            return Path(self.folder, module).parent
        top, *below = module.split(".")
        base = Path(self.folder, top) if self._here(top) else _folder_of(top)
        if base is None:
            return None
        place = base.joinpath(*below)
        return place if place.is_dir() else place.parent

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
        if not self._exists(module):
            raise UsageError(
                f"There is no module {module!r} to take the backend {attribute!r} from, "
                f"neither installed nor in {self.folder}."
            )

    def _exists(self, module: str) -> bool:
        if module.endswith(".py"):
            return Path(self.folder, module).is_file()
        if not all(part.isidentifier() for part in module.split(".")):
            return False
        top = module.partition(".")[0]
        return self._here(top) or _top_level_exists(top)

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
    """The object behind ``module:attribute`` or ``file.py:attribute``, and the module that holds it.

    Raises:
        UsageError: the module has no such attribute, or the file is no Python file.
    """
    name, attribute = address.rsplit(":", 1)
    module = _load_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(f"{name} has no {attribute}.") from None
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


def _folder_of(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    if places:
        return Path(places[0])
    return None if spec is None or spec.origin is None else Path(spec.origin).with_suffix("")


def _top_level_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
