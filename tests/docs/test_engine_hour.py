"""An engine developer's hour, by what its page says: the blocks in the order in which they stand, in a clone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devicekit.cli import main
from tests.docs.blocks import CHECKOUT, Block, blocks_of, commands_in

PAGE = CHECKOUT / "docs" / "porting.md"
LEFT = re.compile(r"^engine/(\w+)\.py:\d+:\d+: DK001 .*\n", re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a clone as the page touches."""
    shutil.copytree(
        CHECKOUT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)  # by whose rules the code is formatted
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(block: Block, capsys: pytest.CaptureFixture[str]) -> tuple[list[int], str]:
    """The exit statuses of a block's commands, and what they print."""
    statuses = []
    for words in commands_in(block.text):
        if words[0] == "devicekit":
            statuses.append(main(words[1:]))
        elif words[0] != "pip":
            line = " ".join([f"{sys.executable} -m ruff" if words[0] == "ruff" else words[0], *words[1:]])
            statuses.append(subprocess.run(["bash", "-c", line], check=False, capture_output=True).returncode)
    return statuses, capsys.readouterr().out


def test_an_engine_developer_sees_what_the_page_says(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shells = [typed(block, capsys) for block in blocks_of(PAGE) if block.language == "bash"]
    _, counted, rewritten, _, left, finished, kept = shells
    assert [statuses for statuses, _ in shells] == [[0], [1], [1, 1], [0, 0], [1], [0, 0], [0, 0]]

    page = PAGE.read_text(encoding="utf-8")
    counts = [int(row) for row in re.findall(r"^ *(\d+) +\d+ +\d+ %", counted[1], re.MULTILINE)]
    assert f"{sum(counts)} places." in page
    fixed = [int(row) for row in re.findall(r"^ *\d+ +(\d+) +\d+ %", counted[1], re.MULTILINE)]
    assert re.search(rf"^ *{sum(counts)} +{sum(fixed)} +places", counted[1], re.MULTILINE)
    [(places, by_hand)] = re.findall(r"(\d+) places rewritten in \d+ files; (\d+) left", rewritten[1])
    assert f"here {places}" in page
    assert (int(places) + int(by_hand), len(LEFT.findall(left[1]))) == (sum(counts), int(by_hand))
    assert LEFT.findall(left[1]) == ["graphs", "graphs", "memory"]
    assert "Exit status 1, and three lines: two about graphs, and a number" in page
    assert "0 new" in finished[1]
    assert "0 findings accepted" in kept[1]

    [proof] = [block.text for block in blocks_of(PAGE) if block.needs == "engine"]
    (clone / "prove.py").write_text(proof)
    done = subprocess.run(
        [sys.executable, "prove.py"], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
