"""A vendor who types what docs/vendors.md says gets from nothing to a green verdict within minutes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "vendors.md"
OURS = [part for project in (".", "conformance") for part in ("-e", str(ROOT / project))]
# Two minutes on a machine with nothing else to do; a busy one is several times slower.
LIMIT = 400.0


def commands_of_section(number: int) -> list[str]:
    """The lines of the first shell block of a section, without their comments."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {number}. ")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line.split("  #")[0].strip() for line in block[1].splitlines() if line.strip()]


def in_environment(command: str, environment: Path) -> list[str]:
    """A command as typed, without an index to ask: others' packages are there, and ours is this checkout."""
    program, *rest = shlex.split(command)
    if program != "pip":
        return [str(environment / "bin" / program), *rest]
    python = str(environment / "bin" / "python")
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    given = [part for word in rest for part in (OURS if word.startswith("devicekit[") else [word])]
    assert given[0] == "install"
    return [sys.executable, "-m", "pip", "--python", python, "install", *offline, *given[1:]]


@pytest.mark.parametrize(
    "rest", [["--profile", "core"], pytest.param([], marks=pytest.mark.thorough)], ids=["core", "as printed"]
)
def test_what_the_page_says_ends_conformant(tmp_path: Path, rest: list[str]) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    others = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others), encoding="utf-8")
    leaking = ("PYTEST_", "DEVICEKIT_", "PYTHONPATH")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(leaking)}

    said: dict[str, str] = {}
    started = time.perf_counter()
    *commands, judging = commands_of_section(1)
    for command in (*commands, shlex.join([*shlex.split(judging), *rest])):
        done = subprocess.run(
            in_environment(command, environment),
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout
    spent = time.perf_counter() - started

    (listed,) = (text for command, text in said.items() if command == "devicekit list")
    assert "acme" in listed
    assert "CONFORMANT" in list(said.values())[-1].splitlines()[-1]
    assert spent < LIMIT
