"""Checks a manifest's version ranges against what is installed, before the plugin is imported."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from devicekit.contract.errors import IncompatibleBackend
from devicekit.contract.versions import CONTRACT_VERSION, SERVED_CONTRACTS, negotiate
from devicekit.registry.candidates import IN_PROCESS, Candidate


def check_requirements(candidate: Candidate) -> Version:
    """Return the contract version that both sides will speak.

    Raises:
        IncompatibleBackend: a range is not met; the message names both versions and the command that helps.
    """
    manifest = candidate.manifest
    if manifest is None:
        raise ValueError("A candidate without a manifest cannot be checked.")
    contract = negotiate(manifest.contract)
    if contract is None:
        served = ", ".join(str(version) for version in SERVED_CONTRACTS)
        raise IncompatibleBackend(
            f"Backend {candidate.label} was written for device contract {manifest.contract}, and this devicekit "
            f"serves {served}. {_contract_remedy(candidate)}",
            backend=candidate.name,
        )
    problems = [
        problem
        for requirement in (Requirement(f"torch{manifest.torch}"), *manifest.requires)
        if (problem := _unmet(requirement)) is not None
    ]
    if problems:
        wanted = " ".join(f"'{requirement}'" for _, requirement in problems)
        said = "; ".join(text for text, _ in problems)
        raise IncompatibleBackend(
            f"Backend {candidate.label} cannot be used: {said}. Try: pip install {wanted}",
            backend=candidate.name,
            problems=tuple(text for text, _ in problems),
        )
    return contract


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


def _unmet(requirement: Requirement) -> tuple[str, Requirement] | None:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"it needs {requirement}, which is not installed", requirement
    # "2.13.0+cpu" satisfies "==2.13.0", but a vendor's "2.7.1.post2" must be compared as it stands.
    if requirement.specifier.contains(Version(installed), prereleases=True):
        return None
    return f"it needs {requirement}, and {requirement.name} {installed} is installed", requirement
