from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from devicekit.contract import HOOKS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("file", "name"), sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE))))
def test_every_test_the_page_names_exists(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert name in defined


def test_every_hook_the_page_names_exists():
    named = re.findall(r"\(hooks\.md#(\w+)\)", PAGE)
    assert named
    assert set(named) <= HOOKS.keys()
