"""The audit of folders: waivers, accepted findings, score, formats and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import devicekit
from devicekit.cli import main
from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit import audit
from devicekit.devtools.audit.accepted import Accepted

HERE = Path(devicekit.__file__).parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "clean.py").write_text("import torch\n\n# a comment\nx = torch.zeros(2)\n")
    (tmp_path / "dirty.py").write_text("import torch\ntorch.cuda.synchronize()\nx.cuda()\n")
    for hidden in (".venv", "build"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "other.py").write_text("torch.cuda.synchronize()\n")
    return tmp_path


def test_our_own_engine_names_no_vendor() -> None:
    engine = ("memory", "scheduling", "weights", "runners", "observe")
    report = audit([HERE / part for part in engine])
    assert report.as_text().splitlines()[:-1] == []
    assert report.score == 100
    assert report.lines > 2000


def test_findings_score_and_exit_status(project: Path) -> None:
    report = audit([project])
    assert [(one.rule, one.line) for one in report.new] == [("DK001", 2), ("DK003", 3)]
    assert (report.files, report.lines, report.portable_lines) == (2, 5, 2)
    assert report.score == 40
    assert report.exit_status == 1
    assert audit([project / "clean.py"]).exit_status == 0
    assert audit([project], exclude=["*/dirty.py"]).new == ()


def test_a_waiver_covers_its_line_and_its_rules_only(project: Path) -> None:
    (project / "dirty.py").write_text(
        "torch.cuda.synchronize()  # devicekit: allow[DK001] the vendor's own profiler\n"
        "x.cuda()  # devicekit: allow[DK001]\n"
        "x.npu()  # devicekit: allow\n"
        "note = '# devicekit: allow'\n"
        "y = 1  # devicekit: allow\n"
    )
    report = audit([project])
    assert [one.line for one in report.waived] == [1, 3]
    assert [one.line for one in report.new] == [2]
    assert [one.line for one in report.unused] == [2, 5]
    assert report.score == 100 * 2 / 7  # a waived vendor is still one


def test_a_waiver_of_an_unknown_rule_is_refused(project: Path) -> None:
    (project / "dirty.py").write_text("x.cuda()  # devicekit: allow[DK999]\n")
    with pytest.raises(ConfigurationError, match=r"dirty\.py:1 allows DK999"):
        audit([project])


def test_accepted_findings_survive_moved_lines_and_do_not_cover_new_ones(project: Path) -> None:
    accepted = Accepted.of(audit([project]).new)
    path = project / "accepted.json"
    accepted.write(path)
    (project / "dirty.py").write_text(
        "import torch\n\n\ntorch.cuda.synchronize()\nx.npu()\ntorch.cuda.synchronize()\n"
    )
    report = audit([project], accepted=Accepted.read(path))
    assert [one.line for one in report.accepted] == [4]
    assert [one.line for one in report.new] == [5, 6]
    assert [one.reason for one in report.unused] == ["accepted DK003 is gone: x.cuda()"]


def test_the_command_accepts_and_then_passes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted = str(project / "accepted.json")
    assert main(["audit", str(project)]) == 1
    assert "dirty.py:2:1: DK001 vendor module: torch.cuda.synchronize" in capsys.readouterr().out
    assert main(["audit", str(project), "--accept", accepted]) == 0
    assert main(["audit", str(project), "--accepted", accepted]) == 0
    assert (
        "0 new, 2 accepted, 0 waived in 2 files (5 lines of code); portability 40.0 %"
        in capsys.readouterr().out
    )


def test_json_and_sarif_say_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (project / "dirty.py").open("a") as file:
        file.write("x.xpu()  # devicekit: allow\n")
    assert main(["audit", str(project), "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [one["rule"] for one in report["new"]] == ["DK001", "DK003"]
    assert main(["audit", str(project), "--format", "sarif"]) == 1
    sarif = json.loads(capsys.readouterr().out)
    assert sarif["version"] == "2.1.0"
    (run,) = sarif["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} >= {"DK001", "DK003"}
    kept = [one for one in run["results"] if "suppressions" not in one]
    assert [one["ruleId"] for one in kept] == ["DK001", "DK003"]
    assert [one["suppressions"][0]["kind"] for one in run["results"] if "suppressions" in one] == ["inSource"]
    region = kept[0]["locations"][0]["physicalLocation"]["region"]
    assert region == {"startLine": 2, "startColumn": 1}


def test_wrong_files_are_explained(project: Path) -> None:
    with pytest.raises(ConfigurationError, match="no_such"):
        audit([project / "no_such"])
    (project / "accepted.json").write_text("[]")
    with pytest.raises(ConfigurationError, match=r"accepted\.json"):
        Accepted.read(project / "accepted.json")
