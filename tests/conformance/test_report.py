"""A report that was edited does not verify, and nothing a backend says can break its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from devicekit_conformance.html_page import page
from devicekit_conformance.judge import Nursery
from devicekit_conformance.publish import badge, junit
from devicekit_conformance.report import Report, make_report, results_digest
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target, UsageError
from devicekit_conformance.verify import problems_of


@pytest.fixture(scope="module")
def report(nursery: Nursery) -> Report:
    session = Session(Target("cpu"), nursery, profiles=["core", "host"])
    session.run()
    try:
        return make_report(session)
    finally:
        session.close()


def problems(tmp_path: Path, report: Report, edit: Callable[[Report], None], *, sign: bool) -> list[str]:
    """What `verify` says of a report that was edited, and signed again or not."""
    copy: Report = json.loads(json.dumps(report))
    edit(copy)
    if sign:
        copy["digest"] = results_digest(copy)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(copy))
    return problems_of(path)


def first(report: Report, status: str) -> dict[str, object]:
    rows = report["results"]
    assert isinstance(rows, list)
    return next(row for row in rows if row["status"] == status)


def test_an_untouched_report_holds(tmp_path: Path, report: Report) -> None:
    assert problems(tmp_path, report, lambda copy: None, sign=False) == []


def test_any_edit_is_seen(tmp_path: Path, report: Report) -> None:
    found = problems(tmp_path, report, lambda copy: first(copy, "n/a").update(message="fine"), sign=False)
    assert found == ["the content was changed after it was written: the digest does not match"]


def test_a_verdict_that_does_not_follow_is_seen_even_when_signed_again(
    tmp_path: Path, report: Report
) -> None:
    found = problems(tmp_path, report, lambda copy: first(copy, "pass").update(status="fail"), sign=True)
    assert any(
        "verdict is 'conformant', and follows from the results as 'non-conformant'" in one for one in found
    )


def test_a_result_that_was_taken_out_is_missed(tmp_path: Path, report: Report) -> None:
    def drop(copy: Report) -> None:
        rows = copy["results"]
        assert isinstance(rows, list)
        rows.remove(first(copy, "n/a"))

    assert any("have no result" in one for one in problems(tmp_path, report, drop, sign=True))


def test_a_level_that_was_lowered_is_seen(tmp_path: Path, report: Report) -> None:
    found = problems(tmp_path, report, lambda copy: first(copy, "pass").update(level="MAY"), sign=True)
    assert any("listed with level 'MAY', and has 'MUST'" in one for one in found)


def test_a_changed_suite_is_seen(tmp_path: Path, report: Report) -> None:
    def change(copy: Report) -> None:
        suite = copy["suite"]
        assert isinstance(suite, dict)
        suite["digest"] = "0" * 64

    assert any("whose files differ" in one for one in problems(tmp_path, report, change, sign=True))


def test_something_else_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("[]", "{", '{"schema": "other/1"}'):
        path.write_text(text)
        with pytest.raises(UsageError):
            problems_of(path)


def test_what_a_backend_says_cannot_break_the_page_or_the_xml(report: Report) -> None:
    copy: Report = json.loads(json.dumps(report))
    hostile = "<script>alert(1)</script>\x00\x1b[31m ' \" & é"
    first(copy, "pass").update(status="fail", message=hostile)
    backend = copy["backend"]
    assert isinstance(backend, dict)
    backend["name"] = hostile
    assert "<script" not in page(copy)
    message = ElementTree.fromstring(junit(copy)).find(".//failure")
    assert message is not None
    assert "alert(1)" in str(message.get("message"))


def test_the_badge_says_verdict_and_tier(report: Report) -> None:
    assert badge(report).startswith("![devicekit: conformant (experimental)](https://")
