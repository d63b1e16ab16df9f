"""The composite action and what it tells a workflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devicekit_conformance.annotations import commands, main, summary
from devicekit_conformance.cli import main as conformance
from devicekit_conformance.report import Report, results_digest

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "::error::x\r\n%0A | <b>`\ud800"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """The report of a run that judged little, with one failure written into it."""
    run = ["run", "--backend", "cpu", "--only", "DK-CORE-001", "--quiet", "--report", str(tmp_path / "out")]
    assert conformance(run) == 6
    path = tmp_path / "out" / "report.json"
    content: Report = json.loads(path.read_text())
    rows = content["results"]
    assert isinstance(rows, list)
    rows[0].update(status="fail", message=HOSTILE)
    content["digest"] = results_digest(content)
    path.write_text(json.dumps(content))
    return path


def test_a_failure_is_one_annotation_and_no_text_can_make_another(
    report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, summed = tmp_path / "output", tmp_path / "summary"
    monkeypatch.setenv("GITHUB_OUTPUT", str(told))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summed))
    assert main([str(report)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::notice"]
    assert told.read_text().splitlines() == ["verdict=incomplete", "tier=none"]
    table = [line for line in summed.read_text().splitlines() if line.startswith("| DK-")]
    assert len(table) == 1
    assert "<b>" not in table[0]
    content = json.loads(report.read_text())
    assert "\r" not in "".join(commands(content)) + summary(content)


def test_without_a_report_the_workflow_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.json")]) == 0
    assert capsys.readouterr().out.startswith("::error title=devicekit conformance::there is no report")


def test_the_action_pastes_no_input_into_a_script() -> None:
    text = (ROOT / "conformance" / "action.yml").read_text()
    steps = text.split("  steps:\n")[1]
    for block in steps.split("    - ")[1:]:
        script = block.partition("      run: ")[2]
        assert "${{" not in script, script
    for name in ("backend", "profiles", "waivers", "probe", "patience", "allow-incomplete", "report"):
        assert f"inputs.{name}" in steps
