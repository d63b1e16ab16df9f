"""A run by its command: what it finds, what it says, and what is left of it when it is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Backend = Callable[[str], str]
RUN = ("conformance", "run", "--backend")
FEW = ("--only", "DK-LOAD-001", "--only", "DK-CORE-001")
BROKEN = "    raise OSError('libacme.so: cannot open')\n"


def test_a_backend_is_found_from_the_current_folder(
    command: Command, tmp_path: Path, backend: Backend
) -> None:
    backend("sound")  # mine.py
    for address in ("mine.py:Mine", "./mine.py:Mine", "mine:Mine"):
        done = command(*RUN, address, *FEW, "--allow-incomplete", folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert command(*RUN, "absent.py:Mine", folder=tmp_path).returncode == 4


@pytest.mark.parametrize("profile", ["core", "memory", "streams", "host", "hardware"])
def test_a_backend_that_does_not_load_ends_with_its_cause(
    command: Command, tmp_path: Path, backend: Backend, profile: str
) -> None:
    done = command(*RUN, backend(BROKEN), "--profile", profile, "--report", "out", folder=tmp_path)
    assert done.returncode == 1
    assert "NON-CONFORMANT" in done.stdout
    last = done.stdout.split("NON-CONFORMANT")[1]
    assert "first cause: A backend MUST load" in last
    assert "libacme.so: cannot open" in last
    assert "DK-" not in done.stdout  # ids are for those who ask
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["id"] for row in report["results"] if row["status"] == "fail"] == ["DK-LOAD-001"]
    _nothing_unjudged_is_green(tmp_path / "out" / "junit.xml", report)


def _nothing_unjudged_is_green(path: Path, report: dict[str, list[dict[str, str]]]) -> None:
    cases = {case.get("name"): case for case in ElementTree.parse(path).getroot()}
    for row in report["results"]:
        kinds = [child.tag for child in cases[row["id"]]]
        if row["status"] == "pass":
            assert kinds == []
        elif row["status"] in ("blocked", "not-run") and row["level"] == "MUST":
            assert kinds == ["error"]
        else:
            assert kinds
        if row["level"] != "MUST":
            assert "failure" not in kinds


@pytest.fixture
def slow(backend: Backend) -> str:
    """A backend whose first question takes an age."""
    return backend("    time.sleep(30)\n")


def started(address: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DEVICEKIT_"))
    }
    return subprocess.Popen(
        [sys.executable, "-m", "devicekit.cli", *RUN, address, "--report", "out", *arguments],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_was_judged(slow: str, tmp_path: Path, number: signal.Signals) -> None:
    run = started(slow, tmp_path)
    wait_for(tmp_path / "out" / "report.json")
    time.sleep(0.3)
    run.send_signal(number)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 2, said
    assert "INTERRUPTED" in said
    assert "INCOMPLETE" in said
    assert "Traceback" not in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["interrupted"] is True
    assert report["verdict"] in ("incomplete", "non-conformant")


def test_an_older_green_report_does_not_stand_for_a_killed_run(slow: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text('{"verdict": "conformant"}')
    run = started(slow, tmp_path)
    deadline = time.monotonic() + 120
    while json.loads((out / "report.json").read_text())["verdict"] == "conformant":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.kill()
    run.communicate(timeout=60)
    report = json.loads((out / "report.json").read_text())
    assert (report["verdict"], report["exit_code"]) == ("incomplete", 2)
    assert [path for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_reader_that_goes_away_changes_no_verdict(backend: Backend, tmp_path: Path) -> None:
    run = started(backend("sound"), tmp_path, *FEW, "-v")
    assert run.stdout is not None
    run.stdout.close()
    assert run.wait(120) == 6
    assert json.loads((tmp_path / "out" / "report.json").read_text())["interrupted"] is False


def test_a_report_that_cannot_be_written_is_said_before_anything_is_judged(
    command: Command, tmp_path: Path, slow: str
) -> None:
    (tmp_path / "file").write_text("")
    done = command(*RUN, slow, "--report", "file/out", folder=tmp_path)
    assert done.returncode == 4
    assert "cannot be written" in done.stderr


PROBES = {
    "absent": "no_such_module:Probe",
    "no attribute": "mine:Absent",
    "methods missing": "mine:Mine",
    "wrong answers": "mine:Answering",
}
ANSWERING = """

class Answering:
    def __getattr__(self, name):
        return lambda *arguments: 7
"""


@pytest.mark.parametrize("kind", PROBES)
def test_a_wrong_probe_is_wrong_usage(command: Command, tmp_path: Path, backend: Backend, kind: str) -> None:
    backend(ANSWERING)
    done = command(*RUN, "mine:Mine", "--probe", PROBES[kind], *FEW, folder=tmp_path)
    assert done.returncode == 4, done.stdout + done.stderr
    assert f"The probe {PROBES[kind]} cannot stand in" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_why_a_tier_is_experimental_is_said(command: Command, tmp_path: Path) -> None:
    done = command(*RUN, "cpu", "--profile", "host", "--quiet", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "tier experimental: not judged: the profiles memory, streams, processes" in done.stdout


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_patience_is_a_positive_number(command: Command, tmp_path: Path, text: str) -> None:
    done = command(*RUN, "cpu", "--patience", text, folder=tmp_path)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_a_report_is_run_again_and_compared(command: Command, tmp_path: Path, backend: Backend) -> None:
    address = backend("sound")
    assert command(*RUN, address, *FEW, "--report", "out", folder=tmp_path).returncode == 6
    again = ("conformance", "rerun", "out/report.json")
    done = command(*again, folder=tmp_path)
    assert (done.returncode, "came out the same" in done.stdout) == (0, True), done.stdout + done.stderr
    backend(BROKEN)
    done = command(*again, folder=tmp_path)
    assert done.returncode == 1
    assert "DK-LOAD-001: pass then, fail now" in done.stdout
