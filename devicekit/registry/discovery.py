"""Finds backends by their entry points and reads their manifests, importing no plugin and no torch."""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from devicekit.contract.errors import BrokenDistribution, DuplicateBackend, ManifestError
from devicekit.contract.manifest import FILE_NAME, Manifest
from devicekit.contract.text import shown
from devicekit.registry.candidates import Candidate, registered
from devicekit.registry.installed import Entry, entries

ENTRY_POINT_GROUP = "devicekit.backends"
"""Where a backend's wheel names its class."""


def discover() -> tuple[Candidate, ...]:
    """Every backend installed or registered, in probe order, with whatever is wrong with it as ``error``.

    Reads the file system on each call, so that a plugin installed into a running notebook is found.
    """
    by_name: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in (*_installed(), *registered()):
        by_name[candidate.name].append(candidate)
    found: list[Candidate] = []
    for name, named in by_name.items():
        # What is broken or hidden already has its verdict, and takes the name from nobody.
        rivals = [one for one in named if not isinstance(one.error, BrokenDistribution)]
        refused = rivals if len(rivals) < 2 else [_refuse(name, rival, rivals) for rival in rivals]
        found.extend([*refused, *(one for one in named if one not in rivals)])
    return tuple(sorted(found, key=_probe_order))


def _probe_order(candidate: Candidate) -> tuple[bool, int, str]:
    manifest = candidate.manifest
    if manifest is None:
        return (False, 0, candidate.name)
    return (manifest.host, manifest.probe_order, candidate.name)


def _refuse(name: str, rival: Candidate, rivals: list[Candidate]) -> Candidate:
    if len({other.distribution for other in rivals}) == 1:
        times = f"{len(rivals)} times among its entry points"
        said = f"{rival.distribution} lists the backend name {shown(name)} {times}"
        remedy = "Its author has to keep one of them."
    else:
        origins = " and ".join(sorted(other.label for other in rivals))
        said = f"Two distributions claim the backend name {shown(name)}: {origins}"
        remedy = f"Uninstall one of them (pip uninstall {rival.distribution})."
    return replace(rival, error=DuplicateBackend(f"{said}. {remedy}", backend=name))


def _installed() -> list[Candidate]:
    return [_candidate(entry) for entry in entries(ENTRY_POINT_GROUP)]


def _candidate(entry: Entry) -> Candidate:
    found = Candidate(entry.name, entry.distribution, entry.version, entry.value, None)
    if entry.problem is not None:
        return replace(found, error=BrokenDistribution(entry.problem, backend=entry.name))
    path: Path | None = None
    try:
        path = _manifest_path(entry.value.partition(":")[0])
        manifest = Manifest.read(path)
        if manifest.name != entry.name:
            raise ManifestError(
                f"The entry point is called {shown(entry.name)}, but its manifest {path} says name = "
                f"{shown(manifest.name)}. They must be the same.",
                backend=entry.name,
            )
    except ManifestError as error:
        return replace(found, error=error, path=path)
    return replace(found, manifest=manifest, path=path)


def _manifest_path(module: str) -> Path:
    """The ``backend.toml`` beside a module, found without importing the module or its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        if spec is None:  # installed a moment ago, into a directory whose listing is remembered
            importlib.invalidate_caches()
            spec = importlib.util.find_spec(top)
    except Exception:  # a finder that somebody installed, or one of sys.path's that fails
        spec = None
    if spec is None:
        raise ManifestError(f"The entry point names the module {shown(module)}, which is not installed.")
    if not spec.submodule_search_locations:
        if spec.origin is None:
            raise ManifestError(f"The entry point's module {shown(module)} has no file.")
        return Path(spec.origin).parent / FILE_NAME
    folder = Path(next(iter(spec.submodule_search_locations)))
    for part in rest:
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder / FILE_NAME
