"""Verify refuses whatever a report of the suite's cannot be, also when its digest was written anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devicekit_conformance.judge import Nursery
from devicekit_conformance.report import Report, make_report, results_digest
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target, UsageError
from devicekit_conformance.verify import problems_of

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def report(nursery: Nursery) -> Report:
    session = Session(Target("cpu"), nursery, only=["DK-CORE-001", "DK-CORE-004"])
    session.run()
    try:
        return make_report(session)
    finally:
        session.close()


def _at(rows: Rows, status: str) -> dict[str, Any]:
    return next(row for row in rows if row["status"] == status)


def _move(rows: Rows) -> None:
    rows.append(rows.pop(0))


def _swap_sentences(rows: Rows) -> None:
    rows[0]["sentence"], rows[1]["sentence"] = rows[1]["sentence"], rows[0]["sentence"]


EDITS: dict[str, Callable[[Rows], object]] = {
    "doubled": lambda rows: rows.append(dict(rows[0])),
    "doubled with another status": lambda rows: rows.append({**rows[0], "status": "n/a", "message": "no"}),
    "moved": _move,
    "missing": lambda rows: rows.pop(),
    "of another profile": lambda rows: rows[0].update(profile="memory"),
    "sentences exchanged": _swap_sentences,
    "renamed": lambda rows: rows[0].update(id="DK-CORE-999"),
    "level lowered": lambda rows: rows[0].update(level="SHOULD"),
    "passes what was not run": lambda rows: _at(rows, "not-run").update(status="pass"),
    "no reason": lambda rows: _at(rows, "not-run").update(message=""),
    "time below zero": lambda rows: rows[0].update(seconds=-1.0),
    "time that is none": lambda rows: rows[0].update(seconds="1"),
    "waived without a waiver": lambda rows: rows[0].update(status="waived", message="so what"),
    "a waiver that nobody needs": lambda rows: rows[0].update(waiver={"reason": "x"}),
    "blocked by nothing": lambda rows: rows[0].update(status="blocked", message="something failed"),
    "a status that does not exist": lambda rows: rows[0].update(status="fine"),
    "no record": lambda rows: rows.append("row"),  # type: ignore[arg-type]  # the fault
    "waivable": lambda rows: _at([row for row in rows if row["unwaivable"]], "not-run").update(
        unwaivable=False
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_inconsistent_report_does_not_hold(what: str, report: Report, tmp_path: Path) -> None:
    copy: dict[str, Any] = json.loads(json.dumps(report))
    EDITS[what](copy["results"])
    copy["digest"] = results_digest(copy)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(copy))
    assert problems_of(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("verdict", "conformant"),
        ("exit_code", 0),
        ("tier", "verified"),
        ("counts", {}),
        ("first_cause", None),
        ("capabilities", []),
        ("profiles", ["core", "core"]),
        ("profiles", ["core", "none"]),
        ("finished", "2001-01-01T00:00:00+00:00"),
        ("started", "yesterday"),
        ("backend", None),
        ("results", None),
        ("interrupted", True),
    ],
)
def test_a_conclusion_that_does_not_follow_is_seen(
    key: str, value: object, report: Report, tmp_path: Path
) -> None:
    copy: Report = {**report, key: value}
    copy["digest"] = results_digest(copy)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(copy))
    assert problems_of(path)


def test_the_untouched_report_holds(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert problems_of(path) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"verdict"', '"verdict": "conformant", "verdict"', 1),
        lambda text: text.replace('"exit_code": 6', '"exit_code": NaN', 1),
        lambda text: text[:-20],
        lambda text: "[" * 100_000,
        lambda text: text.encode("utf-16").decode("latin-1"),
    ],
)
def test_what_is_no_strict_json_is_no_report(
    edit: Callable[[str], str], report: Report, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(edit(json.dumps(report)), encoding="utf-8")
    with pytest.raises(UsageError):
        problems_of(path)
