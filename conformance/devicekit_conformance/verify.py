"""Checks a report again: it is whole, consistent in itself, and its verdict follows from its results.

That finds accidents and careless edits: a cut file, two reports merged, a result that was moved, doubled, lost or
changed. It cannot find a forger. Whoever can write the file can also write its digest; who ran the suite, on what
and when, is for the provenance that a continuous-integration provider attests, and for `rerun`.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from devicekit.documents import read_text
from devicekit.files import UnreadableFile
from devicekit_conformance import __version__
from devicekit_conformance.outcomes import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    Level,
    Result,
    Status,
    Tier,
    counts_of,
    reasons_for_experimental,
    tier_of,
    verdict_of,
)
from devicekit_conformance.report import SCHEMA, capability_matrix, first_cause, results_digest, suite_digest
from devicekit_conformance.rulebook import DEFAULT_PROFILES, PROFILES, rulebook
from devicekit_conformance.target import UsageError

LIMITS = (
    "verify finds accidents and careless edits, not forgery: whoever writes a report can write its digest. "
    "Provenance is the attestation of the CI run; 'devicekit conformance rerun' judges again."
)
_STOPPED = frozenset({Status.FAIL, Status.ERROR, Status.BLOCKED, Status.WAIVED})
_SAYS_WHY = frozenset({*_STOPPED, Status.NOT_RUN, Status.NOT_APPLICABLE, Status.STALE_WAIVER})
_MOST = 64 << 20  # bytes of a report that are worth reading


def problems_of(path: Path, *, any_suite: bool = False) -> list[str]:
    """What is wrong with a report file; empty if it holds.

    Args:
        any_suite: another version of the suite may have made it; what only that one knows is not looked at.

    Raises:
        UsageError: the file is unreadable or no report.
    """
    report = read_report(path)
    problems: list[str] = []
    try:
        if report.get("digest") != results_digest(report):
            problems.append("the content was changed after it was written: the digest does not match")
        rows = report["results"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return [*problems, "it does not follow the schema: results is no list of records"]
        profiles = [str(one) for one in _list(report["profiles"])]
        results = [_result(row) for row in rows]
        problems.extend(_conclusions(report, results, profiles))
        if not any_suite:
            problems.extend(_completeness(report, results, profiles))
            for row, result in zip(rows, results, strict=True):
                problems.extend(_row_faults(row, result, report))
            problems.extend(_order(results))
        problems.extend(_dates(report))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        problems.append(f"it does not follow the schema: {type(error).__name__}: {error}")
    return problems


def read_report(path: Path) -> dict[str, object]:
    """A report file's content.

    Raises:
        UsageError: it is unreadable, not strict JSON, or no report.
    """
    try:
        text = read_text(path, _MOST)
        report = json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
    except UnreadableFile as error:
        raise UsageError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise UsageError(f"{path} is not a report of schema {SCHEMA}.")
    return report


def _conclusions(report: Mapping[str, object], results: list[Result], profiles: list[str]) -> list[str]:
    verdict = verdict_of(results, profiles)
    backend = report["backend"]
    if not isinstance(backend, dict):
        return ["the backend is no record"]
    probe = backend.get("probe")
    foreign = None if probe == "suite" else str(probe)
    tier = tier_of(verdict, profiles, DEFAULT_PROFILES, foreign is not None)
    reasons = reasons_for_experimental(results, profiles, DEFAULT_PROFILES, foreign)
    expected = {
        "verdict": verdict.value,
        "exit_code": EXIT_INTERRUPTED if report.get("interrupted") else EXIT_CODES[verdict],
        "tier": tier.value,
        "tier_reasons": reasons if tier is Tier.EXPERIMENTAL else [],
        "counts": counts_of(results),
        "capabilities": capability_matrix(backend),
        "first_cause": first_cause(results),
    }
    return [
        f"{key} is {report.get(key)!r}, and follows from the results as {value!r}"
        for key, value in expected.items()
        if report.get(key) != value
    ]


def _completeness(report: Mapping[str, object], results: list[Result], profiles: list[str]) -> Iterator[str]:
    suite = report["suite"]
    if not isinstance(suite, dict) or suite["version"] != __version__:
        version = suite.get("version") if isinstance(suite, dict) else suite
        yield f"it was made by suite {version}; verify it with that one, this is {__version__}"
        return
    if suite["digest"] != suite_digest():
        yield "it was made by a suite whose files differ from this one's"
    if unknown := [name for name in profiles if name not in PROFILES]:
        yield f"there is no profile {', '.join(unknown)}"
    for name, number in Counter(profiles).items():
        if number > 1:
            yield f"the profile {name} is listed {number} times"
    wanted = {id for id, rule in rulebook().items() if rule.profile in profiles}
    listed = Counter(result.id for result in results)
    if missing := sorted(wanted - listed.keys()):
        yield f"these requirements have no result: {', '.join(missing)}"
    if foreign := sorted(listed.keys() - wanted):
        yield f"these results belong to no requirement of the profiles: {', '.join(foreign)}"
    if doubled := sorted(id for id, number in listed.items() if number > 1):
        yield f"these requirements have more than one result: {', '.join(doubled)}"


def _row_faults(row: Mapping[str, object], result: Result, report: Mapping[str, object]) -> Iterator[str]:
    rule = rulebook().get(result.id)
    if rule is None:
        return
    stated = {
        "level": rule.level.value,
        "profile": rule.profile,
        "sentence": rule.sentence,
        "why": rule.why,
        "since": rule.since,
        "unwaivable": rule.unwaivable,
    }
    for key, value in stated.items():
        if row.get(key) != value:
            yield f"{result.id} is listed with {key} {_short(row.get(key))}, and has {_short(value)}"
    seconds = row.get("seconds")
    if type(seconds) not in (int, float) or not math.isfinite(float(str(seconds))) or float(str(seconds)) < 0:
        yield f"{result.id} took {seconds!r} seconds"
    if not isinstance(row.get("message"), str) or (result.status in _SAYS_WHY and not row["message"]):
        yield f"{result.id} is {result.status.value} without a reason"
    yield from _waiver_faults(row, result, report, rule.unwaivable)
    backend = report["backend"]
    if result.status is Status.PASS and rule.isolated is None and isinstance(backend, dict):
        hooks, claimed = backend.get("hooks"), backend.get("capabilities")
        absent = [one for one in rule.hooks if isinstance(hooks, list) and one not in hooks]
        absent += [one for one in rule.capabilities if isinstance(claimed, list) and one not in claimed]
        if absent:
            yield f"{result.id} passes, and the backend has no {', '.join(absent)}"


def _waiver_faults(
    row: Mapping[str, object], result: Result, report: Mapping[str, object], unwaivable: bool
) -> Iterator[str]:
    waiver, listed = row.get("waiver"), report.get("waivers")
    known = listed.get(result.id) if isinstance(listed, dict) else None
    if result.status in (Status.WAIVED, Status.STALE_WAIVER):
        if unwaivable:
            yield f"{result.id} is listed as {result.status.value}, and cannot be waived"
        if not isinstance(waiver, dict) or waiver != known:
            yield f"{result.id} is {result.status.value} without the waiver that says so"
        elif str(waiver.get("expires", "")) < str(report["started"])[:10]:
            yield f"{result.id} is waived by a waiver that had expired"
    elif waiver is not None:
        yield f"{result.id} is {result.status.value} and carries a waiver"


def _order(results: Sequence[Result]) -> Iterator[str]:
    """What rests on a failure is not judged, and nothing is blocked by nothing."""
    rules, status = rulebook(), {one.id: one.status for one in results}
    expected = [id for id in rules if id in status]
    if [one.id for one in results if one.id in rules] != expected and len(results) == len(status):
        yield "the results are not in the rule book's order"
    failures = any(one in (Status.FAIL, Status.ERROR, Status.WAIVED) for one in status.values())
    for one in results:
        before = [id for id in (rules[one.id].after if one.id in rules else ()) if status.get(id) in _STOPPED]
        if before and one.status in (Status.PASS, Status.FAIL, Status.NOT_APPLICABLE, Status.WAIVED):
            yield f"{one.id} is {one.status.value}, and {', '.join(before)}, on which it rests, did not pass"
    outside = [id for id in rules if id not in status]
    if not failures and not outside and any(one is Status.BLOCKED for one in status.values()):
        yield "something is blocked, and nothing failed"


def _dates(report: Mapping[str, object]) -> Iterator[str]:
    started = datetime.datetime.fromisoformat(str(report["started"]))
    finished = datetime.datetime.fromisoformat(str(report["finished"]))
    if finished < started:
        yield "it ended before it began"
    if finished > datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1):
        yield "it ended in the future"


def _result(row: Mapping[str, object]) -> Result:
    return Result(
        str(row["id"]),
        Level(str(row["level"])),
        str(row["profile"]),
        Status(str(row["status"])),
        str(row["message"]),
    )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one record")
    return found


def _refused(constant: str) -> object:
    raise ValueError(f"{constant} is not a number of JSON's")


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
