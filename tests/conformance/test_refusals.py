"""Honest backends can be judged by the dozen, and what is refused of one is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.warm import Warm

_FREEDOMS = "devicekit_conformance.selftest.freedoms"
_FAULT = "devicekit_conformance.selftest.model:a_plain_answer_is_wrong__device_count__one_more"


def _refusals(warm: Warm, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*warm.python, "-m", "devicekit_conformance.selftest.refusals", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_freedom_is_judged_and_not_judged_again(tmp_path: Path, warm: Warm) -> None:
    kept = tmp_path / "kept.json"
    first = _refusals(warm, "tuples", "--only", "DK-CORE-00", "--json", str(kept))
    assert first.returncode == 0, first.stdout + first.stderr
    assert json.loads(kept.read_text()) == {f"{_FREEDOMS}:tuples": []}
    second = _refusals(warm, "tuples", "--only", "DK-CORE-00", "--json", str(kept))
    assert second.stdout.splitlines() == ["1 of 1 honest backends were not refused"]


def test_every_refusal_is_told_and_not_the_first_alone(warm: Warm) -> None:
    done = _refusals(warm, "--backend", _FAULT, "--only", "DK-CORE-00", "DK-EACH-101")
    assert done.returncode == 1, done.stdout + done.stderr
    refused = [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len([status for _, status in refused if status == "fail:"]) > 1, done.stdout
    assert done.stdout.splitlines()[-1] == "0 of 1 honest backends were not refused"


_SOMETIMES = """
import os
from devicekit import hookimpl
from devicekit_conformance.selftest.honest import Honest

class Sometimes(Honest):
    @hookimpl
    def device_count(self):
        return super().device_count() + (os.environ["PYTHONHASHSEED"] != "1")
"""


@pytest.mark.thorough
def test_a_verdict_that_changes_is_told(tmp_path: Path) -> None:
    (tmp_path / "sometimes.py").write_text(_SOMETIMES)
    command = [sys.executable, "-m", "devicekit_conformance.selftest.flicker", "--runs", "2"]
    command += ["--backend", f"{tmp_path / 'sometimes.py'}:Sometimes", "--profile", "core"]
    command += ["--probe", "devicekit_conformance.simulated:SimProbe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "pass then, fail now" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 runs, 1 of which differed from the first"
