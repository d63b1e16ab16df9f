"""A vendor who types what docs/vendors.md says gets from nothing to a green verdict within minutes."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest

from tests.docs.environment import Environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "vendors.md"
# Two minutes on a machine with nothing else to do; a busy one is several times slower.
LIMIT = 400.0


def commands_of_section(number: int) -> list[str]:
    """The lines of the first shell block of a section, without their comments."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {number}. ")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line.split("  #")[0].strip() for line in block[1].splitlines() if line.strip()]


@pytest.mark.parametrize(
    "rest", [["--profile", "core"], pytest.param([], marks=pytest.mark.thorough)], ids=["core", "as printed"]
)
def test_what_the_page_says_ends_conformant(tmp_path: Path, rest: list[str]) -> None:
    environment = Environment(tmp_path, LIMIT)
    said: dict[str, str] = {}
    started = time.perf_counter()
    *commands, judging = commands_of_section(1)
    for command in (*commands, shlex.join([*shlex.split(judging), *rest])):
        said[command] = environment.succeed(command)
    spent = time.perf_counter() - started

    (listed,) = (text for command, text in said.items() if command == "devicekit list")
    assert "acme" in listed
    assert ": CONFORMANT, tier " in list(said.values())[-1].splitlines()[-1]
    assert spent < LIMIT
