"""The report: one JSON document that every other view is made from, and that a third party can check again."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from devicekit_conformance import __version__
from devicekit_conformance.frozen_contract import CAPABILITIES, CONTRACT, HOOKS
from devicekit_conformance.outcomes import EXIT_CODES, Result, counts_of, tier_of, verdict_of
from devicekit_conformance.rulebook import DEFAULT_PROFILES, rulebook
from devicekit_conformance.session import Session

SCHEMA = "devicekit-conformance/1"

Report = dict[str, object]


def make_report(session: Session) -> Report:
    """The report of one session, complete but for the results that are not there yet."""
    results, facts = session.results(), session.facts()
    verdict = verdict_of(results)
    report: Report = {
        "schema": SCHEMA,
        "run_id": str(uuid.uuid4()),
        "started": _instant(session.started),
        "finished": _instant(datetime.datetime.now(datetime.timezone.utc).timestamp()),
        "suite": {"version": __version__, "contract": CONTRACT, "digest": suite_digest()},
        "backend": {"address": session.target.address, "probe": session.target.probe or "suite", **facts},
        "environment": _environment(),
        "profiles": list(session.profiles),
        "verdict": verdict.value,
        "exit_code": EXIT_CODES[verdict],
        "tier": tier_of(verdict, session.profiles, DEFAULT_PROFILES, session.target.probe is not None).value,
        "counts": counts_of(results),
        "capabilities": _capability_matrix(facts),
        "results": [_as_data(result) for result in results],
    }
    report["digest"] = results_digest(report)
    return report


def suite_digest() -> str:
    """SHA-256 over the suite's own Python files: a changed suite has another digest."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
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


def _capability_matrix(facts: Mapping[str, object]) -> list[dict[str, object]]:
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
