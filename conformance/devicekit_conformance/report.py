"""The report: one JSON document that every other view is made from, and that a third party can check again."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from devicekit_conformance import __version__
from devicekit_conformance.frozen_contract import CAPABILITIES, CONTRACT, HOOKS
from devicekit_conformance.outcomes import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    Result,
    Status,
    Tier,
    counts_of,
    reasons_for_experimental,
    tier_of,
    verdict_of,
)
from devicekit_conformance.rulebook import DEFAULT_PROFILES, rulebook
from devicekit_conformance.session import Session

SCHEMA = "devicekit-conformance/1"

Report = dict[str, object]


def make_report(session: Session, *, facts: bool = True, interrupted: bool = False) -> Report:
    """The report of one session, complete but for the results that are not there yet.

    Args:
        facts: ask the backend to describe itself; without, it is named only by its address.
        interrupted: the run was ended before its time, which the report says.
    """
    results, probe = session.results(), session.target.probe
    told = dict(session.facts()) if facts else {}
    verdict = verdict_of(results, session.profiles)
    tier = tier_of(verdict, session.profiles, DEFAULT_PROFILES, probe is not None)
    reasons = reasons_for_experimental(results, session.profiles, DEFAULT_PROFILES, probe)
    report: Report = {
        "schema": SCHEMA,
        "run_id": session.run_id,
        "started": _instant(session.started),
        "finished": _instant(datetime.datetime.now(datetime.timezone.utc).timestamp()),
        "interrupted": interrupted,
        "suite": {"version": __version__, "contract": CONTRACT, "digest": suite_digest()},
        "backend": {**told, "address": session.target.address, "probe": probe or "suite"},
        "environment": _environment(),
        "profiles": list(session.profiles),
        "only": session.only,
        "waivers": {id: one.as_data() for id, one in session.waivers.by_id.items()},
        "verdict": verdict.value,
        "exit_code": EXIT_INTERRUPTED if interrupted else EXIT_CODES[verdict],
        "first_cause": first_cause(results),
        "tier": tier.value,
        "tier_reasons": reasons if tier is Tier.EXPERIMENTAL else [],
        "counts": counts_of(results),
        "capabilities": capability_matrix(told),
        "results": [_as_data(result) for result in results],
    }
    report["digest"] = results_digest(report)
    return report


def notices_of(report: Mapping[str, object]) -> Sequence[str]:
    """What the backend's author should know of the contract, whatever the verdict."""
    backend = report.get("backend")
    return _names(backend.get("notices")) if isinstance(backend, dict) else []


def first_cause(results: Sequence[Result]) -> dict[str, str] | None:
    """What a reader must know first: the first binding failure, or else the first thing that was not decided."""
    for wanted in (
        (Status.FAIL, Status.ERROR, Status.STALE_WAIVER),
        (Status.BLOCKED,),
        (Status.NOT_RUN,),
    ):
        for one in results:
            if one.status in wanted and (one.level.value == "MUST" or one.status is Status.STALE_WAIVER):
                sentence = rulebook()[one.id].sentence
                return {
                    "id": one.id,
                    "status": one.status.value,
                    "sentence": sentence,
                    "message": one.message,
                }
    return None


def suite_digest() -> str:
    """SHA-256 over the suite's own files: a changed suite has another digest."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def results_digest(report: Mapping[str, object]) -> str:
    """SHA-256 over everything in the report but the digest itself."""
    content = {key: value for key, value in report.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _as_data(result: Result) -> dict[str, object]:
    rule = rulebook()[result.id]
    return {
        "id": result.id,
        "level": result.level.value,
        "profile": result.profile,
        "status": result.status.value,
        "sentence": rule.sentence,
        "why": rule.why,
        "message": result.message,
        "seconds": result.seconds,
        "since": rule.since,
        "unwaivable": rule.unwaivable,
        "waiver": dict(result.waiver) if result.waiver else None,
    }


def capability_matrix(facts: Mapping[str, object]) -> list[dict[str, object]]:
    """Each capability of the contract: claimed or not, and which of its hooks are there."""
    claimed, hooks = _names(facts.get("capabilities")), _names(facts.get("hooks"))
    return [
        {"name": name, "claimed": name in claimed, "hooks": {hook: hook in hooks for hook in needed}}
        for name, needed in CAPABILITIES.items()
    ]


def _names(found: object) -> Sequence[str]:
    return [str(one) for one in found] if isinstance(found, list) else []


def hook_matrix(report: Mapping[str, object]) -> dict[str, bool]:
    """Each hook of the contract and whether the backend has it."""
    backend = report.get("backend")
    present = _names(backend.get("hooks")) if isinstance(backend, dict) else []
    return {name: name in present for name in HOOKS}


def _environment() -> dict[str, str | None]:
    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in ("devicekit", "torch", "pluggy", "pytest")},
    }


def _instant(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")
