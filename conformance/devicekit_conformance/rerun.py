"""Repeats the run that a report tells of, and compares: the same backend, profiles, waivers and probe."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devicekit_conformance.rulebook import PROFILES, rulebook
from devicekit_conformance.target import Target, UsageError
from devicekit_conformance.verify import problems_of, read_report
from devicekit_conformance.waivers import Waiver, Waivers


@dataclass(frozen=True)
class Plan:
    """The run that a report asks to be repeated."""

    report: Mapping[str, object]
    target: Target
    profiles: tuple[str, ...]
    only: list[str] | None
    waivers: Waivers = field(default_factory=Waivers)


def plan_of(path: Path, backend: str | None = None) -> Plan:
    """What to run again.

    Args:
        backend: another address for the same backend, where it is not found under the one in the report.

    Raises:
        UsageError: the report does not hold, or lacks what a run needs.
    """
    report = read_report(path)
    if problems := problems_of(path, any_suite=True):
        raise UsageError(f"{path} does not hold, so there is nothing to compare with: {'; '.join(problems)}.")
    told, profiles, only = report["backend"], report["profiles"], report.get("only")
    if not isinstance(told, dict) or not isinstance(profiles, list):
        raise UsageError(f"{path} does not say what was judged.")
    probe = None if told.get("probe") == "suite" else str(told.get("probe"))
    chosen = tuple(name for name in PROFILES if name in profiles)
    wanted = [str(id) for id in only if id in rulebook()] if isinstance(only, list) else None
    return Plan(report, Target(backend or str(told["address"]), probe), chosen, wanted, _waivers(report))


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What came out otherwise, one line each: results first, then what the runs stood on."""
    old, new = _by_id(before), _by_id(after)
    found: list[str] = []
    for id in dict.fromkeys([*old, *new]):
        was, now = old.get(id), new.get(id)
        if was is None or now is None:
            found.append(f"{id}: {'new in this suite' if was is None else 'gone from this suite'}")
        elif was["status"] != now["status"]:
            reason = f" ({now['message']})" if now["message"] else ""
            found.append(f"{id}: {was['status']} then, {now['status']} now{reason}")
    return found + _changes("", before, after, ("verdict", "tier"))


def surroundings(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What differs between the two runs besides the results: versions, device, suite."""
    found: list[str] = []
    for part in ("suite", "environment", "backend"):
        old, new = before.get(part), after.get(part)
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [key for key in dict.fromkeys([*old, *new]) if key not in ("hooks", "error", "address")]
            found += _changes(f"{part} ", old, new, keys)
    return found


def _changes(
    where: str, before: Mapping[str, object], after: Mapping[str, object], keys: Sequence[str]
) -> list[str]:
    return [
        f"{where}{key}: {before.get(key)} then, {after.get(key)} now"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _by_id(report: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    rows = report.get("results")
    return {str(row["id"]): row for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}


def _waivers(report: Mapping[str, object]) -> Waivers:
    listed = report.get("waivers")
    found: dict[str, Waiver] = {}
    for id, row in (listed if isinstance(listed, dict) else {}).items():
        ends = datetime.date.fromisoformat(str(row["expires"]))
        found[id] = Waiver(id, str(row["reason"]), str(row["link"]), ends, row.get("strict") != "false")
    return Waivers(found)
