"""The page of features names tests and commands that exist, and tests that run."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from devicekit.cli import main
from devicekit.contract import HOOKS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE)))
PEERS = ["SGL", "VLLM", "DS", "TORCH", "HFA", "LIT", "RMM", "PLUG", "PJRT", "ORT", "OV", "TRI", "VK", "TADA"]
ALWAYS = {"sys.platform", "os.name", "hasattr(os, 'fork')"}  # what these skip for is not the case on Linux


def beside_others() -> list[list[str]]:
    """The cells of the rows that stand beside what others do."""
    rows = re.findall(r"^\| (\d+ \|.*) \|$", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows]


def skips(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """Its marks that keep it from running here by default."""
    marks = [ast.unparse(one) for one in node.decorator_list]
    unwanted = [one for one in marks if re.search(r"mark\.(skip|skipif|xfail|thorough)\b", one)]
    return [one for one in unwanted if not any(reason in one for reason in ALWAYS)]


def status(arguments: list[str]) -> object:
    """How the command ends, returning or leaving."""
    try:
        return main(arguments)
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_the_page_names_exists_and_is_not_skipped(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
    ]
    assert found
    assert [mark for node in found for mark in skips(node)] == []
    marked = [
        node for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)
    ]
    assert not [node for node in marked if "skip" in ast.unparse(node)]


@pytest.mark.thorough
def test_every_test_the_page_names_passes():
    names = [f"{file}::{name}" for file, name in NAMED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-n", "2", "--dist", "loadfile", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "SKIPPED" not in done.stdout, done.stdout[-5000:]


def test_every_hook_the_page_names_exists():
    named = re.findall(r"\(hooks\.md#(\w+)\)", PAGE)
    assert named
    assert set(named) <= HOOKS.keys()


def test_every_command_the_page_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`make ([\w-]+)", PAGE))
    assert targets
    assert targets <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for module in set(re.findall(r"python -m ([\w.]+)", PAGE)) - {"pytest"}:
        assert importlib.util.find_spec(module) is not None, module
    commands = set(re.findall(r"`(?:DEVICEKIT_BACKEND=cpu )?devicekit ([\w-]+)", PAGE))
    assert commands
    for command in commands:
        assert status([command, "--help"]) == 0, command


def test_every_row_beside_others_is_there_once_and_is_shown_by_something():
    rows = beside_others()
    assert [int(row[0]) for row in rows] == list(range(1, 71))
    for number, feature, shown, *others in rows:
        assert feature
        assert re.search(r"tests/[\w/]+\.py::\w+|`(devicekit|make|python|DEVICEKIT_)", shown), number
        assert len(others) == len(PEERS)
        assert set(others) <= {"Y", "P", "N", "·", "?"}, number


def test_every_column_of_others_says_the_version_that_was_read():
    heads = re.findall(r"^\| # \| feature \| shown by \| (.*) \|$", PAGE, re.MULTILINE)
    assert heads
    assert all(head.split(" | ") == PEERS for head in heads)
    read = dict(re.findall(r"^\| ([A-Z]+) \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE))
    assert list(read) == PEERS
    assert all(re.search(r"\d", version) for version in read.values())
