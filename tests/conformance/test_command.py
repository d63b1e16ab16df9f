"""``devicekit conformance``: verdicts, exit codes, and the reports it leaves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from devicekit_conformance.rulebook import rulebook

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def cpu_report(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of reports that a run of every default profile on cpu leaves."""
    folder = tmp_path_factory.mktemp("cpu")
    done = command("conformance", "run", "--backend", "cpu", "--report", "out", "--quiet", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CONFORMANT, tier verified" in done.stdout
    return folder / "out"


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


def test_a_broken_backend_fails_the_requirement_that_names_its_fault(
    command: Command, tmp_path: Path, backend: Callable[[str], str]
) -> None:
    done = command(
        "conformance",
        "run",
        "--backend",
        backend("swapped"),
        "--profile",
        "memory",
        "--report",
        "out",
        folder=tmp_path,
    )
    assert done.returncode == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    failed = [row["id"] for row in report["results"] if row["status"] == "fail"]
    assert "DK-DRIVER-001" in failed
    assert "free is " in next(row["message"] for row in report["results"] if row["id"] == "DK-DRIVER-001")
    assert report["verdict"] == "non-conformant"
    assert report["tier"] == "none"


def test_a_machine_without_the_device_is_never_conformant(
    command: Command, tmp_path: Path, backend: Callable[[str], str]
) -> None:
    run = ("conformance", "run", "--backend", backend("absent"), "--profile", "host")
    done = command(*run, folder=tmp_path)
    assert done.returncode == 6
    assert "INCOMPLETE" in done.stdout
    assert command(*run, "--allow-incomplete", folder=tmp_path).returncode == 0


def test_a_run_of_some_requirements_is_incomplete(command: Command, tmp_path: Path) -> None:
    run = ("conformance", "run", "--backend", "cpu", "--only", "DK-CORE-001")
    done = command(*run, "-v", folder=tmp_path)
    assert done.returncode == 6
    assert "DK-CORE-001    pass" in done.stdout
    assert "DK-CORE-001" not in command(*run, folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "acme"], "No backend 'acme' is installed"),
        (["--backend", "no_such_package:Backend"], "There is no module 'no_such_package'"),
        (["--backend", "./file:Backend"], "There is no module './file'"),
        (["--backend", "cpu", "--only", "DK-NONE-001"], "no requirement DK-NONE-001"),
        (["--backend", "cpu", "--waivers", "absent.toml"], "There is no file absent.toml"),
        ([], "--backend"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_4(
    command: Command, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = command("conformance", "run", *arguments, folder=tmp_path)
    assert done.returncode == 4
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_rule_book_can_be_printed(command: Command, tmp_path: Path) -> None:
    done = command("conformance", "list", folder=tmp_path)
    assert done.returncode == 0
    for rule in rulebook().values():
        assert f"{rule.id}  {rule.level.value:<6} {rule.sentence}" in done.stdout
