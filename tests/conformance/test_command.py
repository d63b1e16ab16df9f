"""``devicekit conformance``: verdicts and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit_conformance.rulebook import rulebook

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_broken_backend_fails_the_requirement_that_names_its_fault(
    command: Command, tmp_path: Path, backend: Callable[[str], str]
) -> None:
    done = command(
        "conformance",
        "run",
        "--backend",
        backend("swapped"),
        "--only",
        "DK-DRIVER-001",
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
    run = ("conformance", "run", "--backend", backend("absent"))
    done = command(*run, "--profile", "host", folder=tmp_path)
    assert done.returncode == 6
    assert "INCOMPLETE" in done.stdout
    assert command(*run, "--only", "DK-CORE-001", "--allow-incomplete", folder=tmp_path).returncode == 0


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


def test_a_class_that_is_not_in_its_module_is_told_in_words(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    for address in ("mine:Backend", "mine.py:Backend"):
        done = command("conformance", "run", "--backend", address, "--profile", "core", folder=tmp_path)
        assert done.returncode == 1
        assert re.search(r": \S*mine\S* has no Backend\.$", done.stdout.strip())


def test_the_rule_book_can_be_printed(command: Command, tmp_path: Path) -> None:
    done = command("conformance", "list", folder=tmp_path)
    assert done.returncode == 0
    for rule in rulebook().values():
        assert f"{rule.id}  {rule.level.value:<6} {rule.sentence}" in done.stdout
