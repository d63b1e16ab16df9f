"""The audit of folders: waivers, accepted findings, score, formats and exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import devicekit
from devicekit.cli import main
from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit import Accepted, Cache, audit, mend, scan

HERE = Path(devicekit.__file__).parent


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


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


def test_a_waiver_of_an_unknown_rule_is_a_finding_and_the_rest_goes_on(project: Path) -> None:
    (project / "dirty.py").write_text("x.cuda()  # devicekit: allow[DK003, DK999] why\nx.npu()\n")
    report = audit([project])
    assert [(one.rule, one.line) for one in report.new] == [("DK003", 2), ("DK009", 1)]
    assert "'DK999'" in report.new[1].what
    assert [one.line for one in report.waived] == [1]


HOSTILE = {
    "encoding.py": b"x = '\xe4\xff'\n",
    "declared.py": b"# -*- coding: nonsense-9 -*-\nx = 1\n",
    "utf16.py": "x = 1\n".encode("utf-16"),
    "nul.py": b"x = 1\0\n",
    "nested.py": b"torch.cuda" + b"(" * 5000 + b")" * 5000 + b"\n",
    "deep.py": b"cuda = " + b"-" * 20000 + b"1\n",
    "attributes.py": b"x = torch.cuda" + b".a" * 20000 + b"\n",
    "number.py": b"x = " + b"9" * 10000 + b"\n",
    "escape.py": b"x = '\\d cuda'\ny.cuda()\n",
    "waiver.py": b"x.cuda()  # devicekit: allow[\n",
    "other_waiver.py": b"x = (  # devicekit: allow\n",
    "circle.py": b"a = b\nb = a\na.cuda.b()\nb.npu()\ntorch = torch\ntorch.cuda.synchronize()\n",
    "chains.py": b"".join(b"a%d = a%d.b\n" % (n % 9, (n * 7 + m) % 9) for n in range(90) for m in range(9))
    + b"a1.cuda\n",
    "self.py": b"x = x.a\nx = x.b\nx = x.c\n" * 50 + b"x.cuda.d()\n",
    "latin.py": b"# coding: latin-1\nx = '\xe4'; y.cuda()\n",
    "bom.py": b"\xef\xbb\xbfy.cuda()\n",
}


def test_no_file_however_odd_ends_an_audit(project: Path) -> None:
    for name, content in HOSTILE.items():
        (project / name).write_bytes(content)
    (project / "folder.py").mkdir()
    (project / "gone.py").symlink_to(project / "nowhere.py")
    report = audit([project])
    unread = {Path(one.path).name for one in report.new if one.rule == "DK000"}
    assert unread >= {"encoding.py", "declared.py", "utf16.py", "nul.py", "nested.py", "other_waiver.py"}
    found = {Path(one.path).name for one in report.new if one.rule != "DK000"}
    assert found >= {"dirty.py", "escape.py", "waiver.py", "latin.py", "bom.py", "circle.py"}
    for text in (report.as_text(), report.as_github(), report.as_lines(), report.as_statistics()):
        assert "dirty.py" in text or "torch.cuda.synchronize" in text
    assert mend([project], write=False).left


def test_an_unchanged_file_is_not_read_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = project / "cache" / "audit.json"
    (project / "waived.py").write_text("x.cuda()  # devicekit: allow[DK003, DK998]\n")
    first = audit([project], cache=Cache(store))
    examined: list[Path] = []
    real = scan.read
    monkeypatch.setattr(scan, "read", lambda path: examined.append(path) or real(path))
    assert audit([project], cache=Cache(store)) == first
    assert examined == []
    (project / "clean.py").write_text("x.npu()\n")
    changed = audit([project], cache=Cache(store))
    assert [path.name for path in examined] == ["clean.py"]
    assert len(changed.new) == len(first.new) + 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"stamp": 1}', "\0", '{"files": {"a": 1}}'])
def test_a_spoilt_cache_is_none(project: Path, content: str) -> None:
    store = project / "audit.json"
    first = audit([project], cache=Cache(store))
    store.write_text(content)
    assert audit([project], cache=Cache(store)) == first
    text = store.read_text()
    for spoilt in (text.replace("[", "{", 1), text.replace('"DK001"', "1"), text.replace("dirty.py", "x.py")):
        store.write_text(spoilt)
        assert audit([project], cache=Cache(store)).files == first.files
    assert audit([project], cache=Cache(project / "clean.py" / "below")) == first


def test_a_flag_read_often_is_one_finding(project: Path) -> None:
    (project / "dirty.py").write_text(
        "_is_npu = probe()\n"
        "def f(x):\n    if _is_npu and platform.is_cuda(): return x.is_cuda\n    return self.is_xpu\n"
        "def g(x):\n    if _is_npu or platform.is_cuda(): return x.is_cuda\n"
        "    if _is_npu: return  # devicekit: allow[DK004] a workaround\n"
    )
    report = audit([project])
    assert [(one.what, one.line, one.times) for one in report.new] == [
        ("_is_npu", 3, 2),
        ("platform.is_cuda", 3, 2),
        ("x.is_cuda", 3, 1),  # two different things of one name
        ("self.is_xpu", 4, 1),
        ("x.is_cuda", 6, 1),
    ]
    assert "asked 2 times" in report.as_text()
    assert [one.line for one in report.waived] == [7]


def test_statistics_put_the_most_frequent_call_first(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "dirty.py").write_text(
        "import torch\ndef f():\n" + "    torch.cuda.synchronize()\n" * 3 + "x.npu()\n"
    )
    assert main(["audit", str(project), "--statistics", "--no-cache"]) == 1
    first, second, *_ = capsys.readouterr().out.splitlines()[1:]
    assert first.split() == ["3", "3", "75", "%", "DK001", "torch.cuda.synchronize:", "device.synchronize()"]
    assert "100 %  DK003 x.npu()" in second


def test_annotations_for_github_and_lines_for_pre_commit(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "a,b%.py").write_text("torch.cuda.empty_cache()\n")
    assert main(["audit", str(project), "--format", "github", "--no-cache"]) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"::error file={project}/a%2Cb%25.py,line=1,col=1,title=DK001 vendor module::torch.cuda"
    )
    assert len(others) == 2
    assert main(["audit", str(project), "--format", "pre-commit", "--no-cache"]) == 1
    assert [line.count(": DK00") for line in capsys.readouterr().out.splitlines()] == [1, 1, 1]
    assert main(["audit", str(project / "clean.py"), "--format", "pre-commit", "--no-cache"]) == 0
    assert capsys.readouterr().out == ""


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
