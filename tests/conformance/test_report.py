"""The cpu is conformant, and its report says so: an edited one does not verify, no text can break its page."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from devicekit_conformance.html_page import page
from devicekit_conformance.publish import badge, junit
from devicekit_conformance.report import Report, results_digest
from devicekit_conformance.rulebook import rulebook
from devicekit_conformance.target import UsageError
from devicekit_conformance.verify import problems_of
from tests.conformance.conftest import ONLY_OURS, SUITE

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def cpu_report(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of reports that a run of every default profile on cpu leaves, through the door of pytest.

    The command's own is tried whole where a vendor does what the page for vendors says.
    """
    folder = tmp_path_factory.mktemp("cpu")
    run = (*SUITE, *ONLY_OURS, "-q", "--backend", "cpu", "--report", "out")
    done = command(*run, folder=folder, module="pytest", as_a_user=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nCONFORMANT (" in done.stdout
    return folder / "out"


@pytest.fixture(scope="module")
def report(cpu_report: Path) -> Report:
    found: Report = json.loads((cpu_report / "report.json").read_text())
    return found


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


def test_cpu_is_conformant_and_its_report_says_so(cpu_report: Path) -> None:
    report = json.loads((cpu_report / "report.json").read_text())
    assert report["schema"] == "devicekit-conformance/1"
    assert (report["verdict"], report["tier"], report["exit_code"]) == ("conformant", "verified", 0)
    assert report["backend"]["distribution"] == "devicekit-cpu"
    assert report["backend"]["probe"] == "suite"
    statuses = {row["id"]: row["status"] for row in report["results"]}
    assert set(statuses.values()) == {"pass", "n/a"}
    for id in ("DK-LOAD-001", "DK-CACHE-002", "DK-ORDER-002", "DK-SAFE-003", "DK-ENGINE-001"):
        assert statuses[id] == "pass"
    default = {id for id, rule in rulebook().items() if rule.profile != "hardware"}
    assert statuses.keys() == default


def test_a_written_report_verifies(command: Command, cpu_report: Path) -> None:
    done = command("conformance", "verify", cpu_report / "report.json", folder=cpu_report)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{cpu_report / 'report.json'}: holds\n")
    assert "not forgery" in done.stdout


def test_every_form_of_the_report_is_written(cpu_report: Path) -> None:
    junit = ElementTree.parse(cpu_report / "junit.xml").getroot()
    assert junit.get("failures") == "0"
    assert len(junit) == len(json.loads((cpu_report / "report.json").read_text())["results"])
    html = (cpu_report / "report.html").read_text()
    assert "Conformant" in html
    assert "DK-CACHE-002" in html
    assert "src=" not in html  # self-contained: nothing is loaded from anywhere
    assert "<script" not in html
    assert "![devicekit: conformant (verified)]" in (cpu_report / "badge.md").read_text()


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
    assert badge(report).startswith("![devicekit: conformant (verified)](https://")
