"""Finds backends by their entry points and reads their manifests, importing no plugin and no torch."""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from devicekit.contract.errors import DuplicateBackend, ManifestError
from devicekit.contract.manifest import FILE_NAME, Manifest
from devicekit.registry.candidates import Candidate, registered

ENTRY_POINT_GROUP = "devicekit.backends"


def discover() -> tuple[Candidate, ...]:
    """Every backend installed or registered, in probe order, with whatever is wrong with it as ``error``.

    Reads the file system on each call, so that a plugin installed into a running notebook is found.
    """
    by_name: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in (*_installed(), *registered()):
        by_name[candidate.name].append(candidate)
    found: list[Candidate] = []
    for name, rivals in by_name.items():
        found.extend(rivals if len(rivals) == 1 else (_refuse(name, rival, rivals) for rival in rivals))
    return tuple(sorted(found, key=_probe_order))


def _probe_order(candidate: Candidate) -> tuple[bool, int, str]:
    manifest = candidate.manifest
    if manifest is None:
        return (False, 0, candidate.name)
    return (manifest.host, manifest.probe_order, candidate.name)


def _refuse(name: str, rival: Candidate, rivals: list[Candidate]) -> Candidate:
    origins = " and ".join(sorted(other.label for other in rivals))
    error = DuplicateBackend(
        f"Two distributions claim the backend name {name!r}: {origins}. Uninstall one of them "
        f"(pip uninstall {rival.distribution}).",
        backend=name,
    )
    return replace(rival, error=error)


def _installed() -> list[Candidate]:
    # The same distribution is listed twice where a directory stands on sys.path twice.
    seen: dict[tuple[str, str, str], Candidate] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        # Left-over metadata without a name or a version is not reason enough to hide every other backend.
        about = entry.dist and entry.dist.metadata  # parsed anew each time it is asked for
        distribution = (about and about["Name"]) or "unknown distribution"
        version = (about and about["Version"]) or None
        key = (entry.name, canonicalize_name(distribution), entry.value)
        if key not in seen:
            found = Candidate(entry.name, distribution, version, entry.value, None)
            seen[key] = _with_manifest(found, entry)
    return list(seen.values())


def _with_manifest(candidate: Candidate, entry: metadata.EntryPoint) -> Candidate:
    path: Path | None = None
    try:
        path = _manifest_path(entry.module)
        manifest = Manifest.read(path)
        if manifest.name != entry.name:
            raise ManifestError(
                f"The entry point is called {entry.name!r}, but its manifest says name = {manifest.name!r}. "
                "They must be the same.",
                backend=entry.name,
            )
    except ManifestError as error:
        return replace(candidate, error=error, path=path)
    return replace(candidate, manifest=manifest, path=path)


def _manifest_path(module: str) -> Path:
    """The ``backend.toml`` beside a module, found without importing the module or its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        if spec is None:  # installed a moment ago, into a directory whose listing is remembered
            importlib.invalidate_caches()
            spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ManifestError(f"The entry point names the module {module!r}, which is not installed.")
    if not spec.submodule_search_locations:
        if spec.origin is None:
            raise ManifestError(f"The entry point's module {module!r} has no file.")
        return Path(spec.origin).parent / FILE_NAME
    folder = Path(next(iter(spec.submodule_search_locations)))
    for part in rest:
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder / FILE_NAME
