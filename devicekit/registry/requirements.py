"""Checks a manifest's version ranges against what is installed, before the plugin is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from devicekit.contract.errors import ConfigurationError, IncompatibleBackend
from devicekit.contract.names import resembling
from devicekit.contract.text import shown
from devicekit.contract.versions import CONTRACT_VERSION, SERVED_CONTRACTS, negotiate, range_text
from devicekit.registry.candidates import IN_PROCESS, Candidate
from devicekit.registry.discovery import discover
from devicekit.registry.installed import installed_version

if TYPE_CHECKING:
    from packaging.requirements import Requirement


_ALLOWED = "DEVICEKIT_ALLOWED_DISTRIBUTIONS"


def is_allowed(candidate: Candidate) -> bool:
    """Whether ``DEVICEKIT_ALLOWED_DISTRIBUTIONS`` lets the candidate be imported. Unset, it lets all."""
    if os.environ.get(_ALLOWED) is None or candidate.factory is not None:
        return True
    return canonicalize_name(candidate.distribution) in map(canonicalize_name, _listed())


def allowed_in_vain(candidates: Iterable[Candidate]) -> list[str]:
    """A sentence for each name in ``DEVICEKIT_ALLOWED_DISTRIBUTIONS`` that no installed backend comes from."""
    installed = {str(canonicalize_name(one.distribution)): one.distribution for one in candidates}
    said = []
    for name in _listed():
        if canonicalize_name(name) not in installed:
            near = resembling(canonicalize_name(name), installed)
            hint = f" Did you mean {shown(installed[near])}?" if near else ""
            said.append(f"{_ALLOWED} names {shown(name)}, from which no installed backend comes.{hint}")
    return said


def _listed() -> list[str]:
    return [name for part in os.environ.get(_ALLOWED, "").split(",") if (name := part.strip())]


def check_allowed(candidate: Candidate) -> None:
    """Raise `ConfigurationError` unless `is_allowed`."""
    if not is_allowed(candidate):
        in_vain = "".join(f" {one}" for one in allowed_in_vain(discover()))
        raise ConfigurationError(
            f"Backend {candidate.label} may not be imported: {_ALLOWED} is {shown(os.environ[_ALLOWED])}. "
            f"Add {candidate.distribution} to it to allow this.{in_vain}"
        )


def check_requirements(candidate: Candidate) -> tuple[Version, ...]:
    """Return the contract versions that both sides speak, newest first.

    Raises:
        IncompatibleBackend: a range is not met; the message names both versions and the command that helps.
    """
    manifest = candidate.manifest
    if manifest is None:
        raise ValueError("A candidate without a manifest cannot be checked.")
    contracts = negotiate(manifest.contract)
    if not contracts:
        served = ", ".join(str(version) for version in SERVED_CONTRACTS)
        raise IncompatibleBackend(
            f"Backend {candidate.label} was written for device contract {range_text(manifest.contract)}, and this "
            f"devicekit serves {served}. {_contract_remedy(candidate)}",
            backend=candidate.name,
        )
    unmet = {}
    if (problem := _problem("torch", manifest.torch)) is not None:
        unmet[f"torch{manifest.torch}"] = problem
    for requirement in manifest.requires:
        if (problem := _unmet(requirement)) is not None:
            unmet[str(requirement)] = problem
    if unmet:
        wanted = " ".join(f"'{requirement}'" for requirement in unmet)
        raise IncompatibleBackend(
            f"Backend {candidate.label} cannot be used: {'; '.join(unmet.values())}. Try: pip install {wanted}",
            backend=candidate.name,
            problems=tuple(unmet.values()),
        )
    return contracts


def _contract_remedy(candidate: Candidate) -> str:
    if candidate.distribution == IN_PROCESS:
        return "Change the range in its manifest after checking the hooks against this contract."
    manifest = candidate.manifest
    newest = Version(f"{CONTRACT_VERSION.major + 1}.0")
    wants_newer = manifest is not None and any(
        specifier.operator in (">=", ">", "==", "~=")
        and Version(specifier.version.rstrip(".*")) > CONTRACT_VERSION
        for specifier in manifest.contract
    )
    if wants_newer or (manifest is not None and manifest.contract.contains(newest, prereleases=True)):
        return "Try: pip install --upgrade devicekit"
    return f"Try: pip install --upgrade {candidate.distribution}"


def _unmet(requirement: Requirement) -> str | None:
    try:
        if requirement.marker is not None and not requirement.marker.evaluate():
            return None
    except Exception as error:  # a marker may compare what cannot be compared
        return f"its requirement {shown(str(requirement))} cannot be judged: {error}"
    return _problem(requirement.name, requirement.specifier)


def _problem(name: str, wanted: SpecifierSet) -> str | None:
    installed = installed_version(name)
    if installed is None:
        return f"it needs {name}{wanted}, which is not installed, or whose metadata cannot be read"
    # "2.13.0+cpu" satisfies "==2.13.0", but a vendor's "2.7.1.post2" must be compared as it stands.
    try:
        if wanted.contains(Version(installed), prereleases=True):
            return None
    except InvalidVersion:
        return f"it needs {name}{wanted}, and the installed version {shown(installed)} is no version"
    return f"it needs {name}{wanted}, and {name} {installed} is installed"
