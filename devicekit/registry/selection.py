"""Chooses a backend, and can explain the choice: every candidate has a verdict that can be read."""

from __future__ import annotations

import difflib
import enum
import os
import time
from dataclasses import dataclass, replace

from devicekit.contract.environment import check_environment
from devicekit.contract.errors import (
    BackendLoadError,
    BackendUnavailable,
    BrokenDistribution,
    ConfigurationError,
    DeviceKitError,
    SelectionError,
    UnknownBackend,
)
from devicekit.contract.text import shown
from devicekit.registry.availability import hardware_seen, hardware_signs
from devicekit.registry.candidates import Candidate, Stage
from devicekit.registry.discovery import ENTRY_POINT_GROUP, discover
from devicekit.registry.loading import LoadFailure, load_staged
from devicekit.registry.opened import OpenedBackend
from devicekit.registry.probing import probe, refuse_inside_probe
from devicekit.registry.request import parse_request, requested_by_environment
from devicekit.registry.requirements import allowed_in_vain, is_allowed

FIRST_PARTY = ("cpu", "cuda", "musa", "npu", "rocm", "xpu")


class Policy(enum.Enum):
    """What an automatic choice does when a plugin fails."""

    STRICT = "strict"  # any failure raises
    MATCHING = "matching"  # a failure raises unless the machine plainly lacks that hardware
    LENIENT = "lenient"  # failures are recorded and passed over


class Verdict(enum.Enum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    NO_HARDWARE = "no hardware"
    FAILED = "failed"
    NOT_ALLOWED = "not allowed"  # DEVICEKIT_ALLOWED_DISTRIBUTIONS leaves it out
    NOT_TRIED = "not tried"  # another was chosen first, or asked for by name


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """One candidate's way through selection."""

    name: str
    distribution: str
    version: str | None
    stage: Stage  # the furthest stage entered
    verdict: Verdict
    reason: str
    error: DeviceKitError | None = None
    device_count: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen backend, and why each of the others was not."""

    backend: OpenedBackend
    request: str | None
    policy: Policy
    candidates: tuple[CandidateReport, ...]
    notes: tuple[str, ...] = ()  # what else is odd about the settings or the installation

    def explain(self) -> str:
        """The choice in words, a line for each candidate."""
        asked = "nothing was asked for" if self.request is None else f"{shown(self.request)} was asked for"
        lines = [f"{self.backend.label} was chosen: {asked}, policy {self.policy.value}."]
        lines += [f"  {report.name}: {report.verdict.value}: {report.reason}" for report in self.candidates]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def select(request: str | None = None, policy: Policy | str | None = None) -> Selection:
    """Choose a backend.

    Args:
        request: a backend's name, or a torch device type, which means the backend of that name and, if there is
            none or it finds no hardware, the others that serve the type: ``"cuda"`` opens ROCm. Default:
            ``DEVICEKIT_BACKEND``, and failing that, the first backend in probe order that has hardware; the host
            itself only when no other backend claims any.
        policy: what a failing plugin does to an automatic choice. Default: ``DEVICEKIT_POLICY``, and failing
            that, ``matching``.

    Raises:
        UnknownBackend: nothing of that name is installed.
        BackendUnavailable: the named backend finds no hardware, or no backend does.
        BackendLoadError, ContractError, DuplicateBackend: a plugin failed and the policy does not pass it over.
    """
    refuse_inside_probe()
    check_environment(os.environ)
    if request is None:
        request = requested_by_environment()
    if request is not None:
        request, _ = parse_request(request)
    chosen_policy = _policy(policy)
    candidates = discover()
    if request is None:
        return _first_with_hardware(candidates, chosen_policy)
    bearing = [candidate for candidate in candidates if candidate.name == request]
    named = min(bearing, key=lambda one: isinstance(one.error, BrokenDistribution), default=None)
    asked = [*([] if named is None else [named]), *_of_type(request, candidates, besides=named)]
    if not asked:
        raise _unknown(request, candidates)
    reports: dict[Candidate, CandidateReport] = {}
    for candidate in asked:
        reports[candidate], backend = _try(candidate)
        if (error := reports[candidate].error) is not None:
            raise error.with_traceback(None) from error.__cause__
        if backend is not None:
            break
    else:
        raise _no_hardware(request, asked)
    for other in candidates:
        if other not in reports:
            reports[other] = _not_tried(other, f"{shown(request)} was asked for by name")
    notes = tuple(allowed_in_vain(candidates))
    return Selection(backend, request, chosen_policy, tuple(reports.values()), notes)


def select_type(device_type: str) -> Selection:
    """Choose a backend for tensors of one torch device type, as in ``torch.device(device_type)``.

    The backend named like the type is asked first, then the others that serve it in probe order: on a ROCm
    machine ``torch.device("cuda")`` belongs to the backend ``rocm``.

    Raises:
        UnknownBackend: no installed backend serves the type.
        SelectionError, ContractError: as `select`.
    """
    refuse_inside_probe()
    check_environment(os.environ)
    candidates = discover()
    serving = [
        one for one in candidates if one.manifest is not None and one.manifest.device_type == device_type
    ]
    serving.sort(key=lambda candidate: candidate.name != device_type)
    # One whose manifest is broken counts too: it is not absent.
    named = [one for one in candidates if one.manifest is None and one.name == device_type]
    if not serving and not named:
        raise _unknown(device_type, candidates)
    return _first_with_hardware((*named, *serving), _policy(None))


def _first_with_hardware(candidates: tuple[Candidate, ...], policy: Policy) -> Selection:
    reports: list[CandidateReport] = []
    backend: OpenedBackend | None = None
    for candidate in candidates:
        if backend is not None:
            reports.append(_not_tried(candidate, f"{shown(backend.name)} comes first in probe order"))
            continue
        if candidate.manifest is not None and not candidate.manifest.automatic:
            reports.append(_not_tried(candidate, "it is used only when asked for by name"))
            continue
        if not is_allowed(candidate):
            reason = "DEVICEKIT_ALLOWED_DISTRIBUTIONS does not list its distribution"
            reports.append(_report(candidate, Stage.FOUND, Verdict.NOT_ALLOWED, reason))
            continue
        report, backend = _try(candidate)
        reports.append(report)
        if report.error is not None and _forbids(policy, candidate):
            raise report.error.with_traceback(None) from report.error.__cause__
    if backend is None:
        raise _nothing(reports)
    return Selection(backend, None, policy, tuple(reports), tuple(allowed_in_vain(candidates)))


def _forbids(policy: Policy, candidate: Candidate) -> bool:
    if policy is Policy.MATCHING:
        return hardware_seen(candidate.manifest)
    return policy is Policy.STRICT


def _try(candidate: Candidate) -> tuple[CandidateReport, OpenedBackend | None]:
    started = time.perf_counter()
    stage, count, backend = Stage.PROBE, None, None
    error: DeviceKitError | None = None
    verdict, reason = Verdict.FAILED, ""
    try:
        opened = load_staged(candidate)
        found = probe(opened)
        count = found.device_count
        if found.available:
            backend, verdict, reason = opened, Verdict.CHOSEN, f"{count} device{'s' if count > 1 else ''}"
        else:
            verdict, reason = Verdict.NO_HARDWARE, "is_available() is False"
            if signs := hardware_signs(opened.manifest):
                reason += f", although {signs[0]} exists"
    except LoadFailure as failure:
        stage, error, reason = failure.stage, failure.error, str(failure.error)
    except BackendLoadError as failure:
        error, reason = failure, str(failure)
    seconds = time.perf_counter() - started
    report = _report(candidate, stage, verdict, reason)
    return replace(report, error=error, device_count=count, seconds=seconds), backend


def _not_tried(candidate: Candidate, reason: str) -> CandidateReport:
    return _report(candidate, Stage.FOUND, Verdict.NOT_TRIED, reason)


def _report(candidate: Candidate, stage: Stage, verdict: Verdict, reason: str) -> CandidateReport:
    return CandidateReport(candidate.name, candidate.distribution, candidate.version, stage, verdict, reason)


def _policy(policy: Policy | str | None) -> Policy:
    source = "policy" if policy is not None else "DEVICEKIT_POLICY"
    value = policy or os.environ.get("DEVICEKIT_POLICY") or Policy.MATCHING
    try:
        return Policy(value)
    except ValueError:
        known = ", ".join(repr(one.value) for one in Policy)
        raise ConfigurationError(f"{source} must be one of {known}, not {shown(value)}.") from None


def _unknown(request: str, candidates: tuple[Candidate, ...]) -> UnknownBackend:
    installed = [candidate.name for candidate in candidates]
    listed = ", ".join(installed) if installed else "none"
    message = f"No backend {shown(request)} is installed (installed: {listed})."
    if request in FIRST_PARTY:
        message += f" Try: pip install devicekit-{request}"
    elif near := difflib.get_close_matches(request, {*installed, *FIRST_PARTY}, n=1):
        message += f" Did you mean {shown(near[0])}?"
        if near[0] not in installed:
            message += f" Then: pip install devicekit-{near[0]}"
    else:
        message += (
            f" A backend is a distribution with an entry point in the group {shown(ENTRY_POINT_GROUP)}."
        )
    return UnknownBackend(message, backend=request)


def _of_type(
    device_type: str, candidates: tuple[Candidate, ...], besides: Candidate | None
) -> list[Candidate]:
    """The other backends that serve a torch device type, where nobody asked that they be left out."""
    return [
        one
        for one in candidates
        if one is not besides
        and one.manifest is not None
        and one.manifest.device_type == device_type
        and one.manifest.automatic
        and is_allowed(one)
    ]


def _no_hardware(request: str, asked: list[Candidate]) -> BackendUnavailable:
    candidate = asked[0]
    message = f"Backend {candidate.label} was asked for and finds no hardware on this machine."
    if len(asked) > 1:
        others = ", ".join(one.label for one in asked[1:])
        message += f" Neither do others that serve {shown(request)}: {others}."
    manifest = candidate.manifest
    if manifest is not None and manifest.visible_devices_variable is not None:
        variable = manifest.visible_devices_variable
        if variable in os.environ:
            message += f" {variable} is {shown(os.environ[variable])}."
    return BackendUnavailable(message, backend=candidate.name)


def _nothing(reports: list[CandidateReport]) -> SelectionError:
    if not reports:
        return UnknownBackend("No backend is installed. Try: pip install devicekit-cpu")
    lines = "\n".join(f"  {report.name}: {report.verdict.value}: {report.reason}" for report in reports)
    return BackendUnavailable(f"No backend can be used on this machine:\n{lines}")
