"""Checks a report again: nobody edited it, it is complete, and its verdict follows from its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from devicekit_conformance import __version__
from devicekit_conformance.outcomes import EXIT_CODES, Level, Result, Status, counts_of, tier_of, verdict_of
from devicekit_conformance.report import SCHEMA, results_digest, suite_digest
from devicekit_conformance.rulebook import DEFAULT_PROFILES, rulebook
from devicekit_conformance.target import UsageError


def problems_of(path: Path) -> list[str]:
    """What is wrong with a report file; empty if it holds.

    Raises:
        UsageError: the file is unreadable or no report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise UsageError(f"{path} is not a report of schema {SCHEMA}.")
    problems: list[str] = []
    if report.get("digest") != results_digest(report):
        problems.append("the content was changed after it was written: the digest does not match")
    try:
        results = [_result(row) for row in report["results"]]
        suite, profiles = report["suite"], list(report["profiles"])
        problems.extend(_conclusions(report, results, profiles))
        problems.extend(_completeness(suite, results, profiles))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"it does not follow the schema: {type(error).__name__}: {error}")
    return problems


def _conclusions(report: Mapping[str, object], results: list[Result], profiles: list[str]) -> list[str]:
    verdict = verdict_of(results)
    backend = report["backend"]
    foreign = not isinstance(backend, dict) or backend.get("probe") != "suite"
    expected = {
        "verdict": verdict.value,
        "exit_code": EXIT_CODES[verdict],
        "tier": tier_of(verdict, profiles, DEFAULT_PROFILES, foreign).value,
        "counts": counts_of(results),
    }
    return [
        f"{key} is {report.get(key)!r}, and follows from the results as {value!r}"
        for key, value in expected.items()
        if report.get(key) != value
    ]


def _completeness(suite: Mapping[str, str], results: list[Result], profiles: list[str]) -> list[str]:
    if suite["version"] != __version__:
        return [f"it was made by suite {suite['version']}; verify it with that one, this is {__version__}"]
    problems: list[str] = []
    if suite["digest"] != suite_digest():
        problems.append("it was made by a suite whose files differ from this one's")
    listed, rules = {result.id: result for result in results}, rulebook()
    wanted = {id for id, rule in rules.items() if rule.profile in profiles}
    if missing := sorted(wanted - listed.keys()):
        problems.append(f"these requirements have no result: {', '.join(missing)}")
    if foreign := sorted(listed.keys() - wanted):
        problems.append(f"these results belong to no requirement: {', '.join(foreign)}")
    for id in sorted(wanted & listed.keys()):
        rule, result = rules[id], listed[id]
        if result.level is not rule.level:
            problems.append(f"{id} is listed as {result.level.value}, and is a {rule.level.value}")
        if result.status is Status.WAIVED and rule.unwaivable:
            problems.append(f"{id} is listed as waived, and cannot be")
    return problems


def _result(row: Mapping[str, object]) -> Result:
    return Result(str(row["id"]), Level(str(row["level"])), str(row["profile"]), Status(str(row["status"])))
