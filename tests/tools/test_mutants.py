"""Mutants: what is changed, which tests are chosen, and that one that nobody notices is told."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from tools.mutants.covering import Coverage
from tools.mutants.operators import mutants
from tools.mutants.page import NOT_JUDGED, page
from tools.mutants.session import change

SOURCE = '''
"""Words."""
from a import b

LIMIT = 3


class Pool:
    def take(self, count: int = 1) -> list[int]:
        """Take some."""
        if count > self.free and not self.closed:
            raise ValueError(f"only {self.free + 0} of {count}")
        self.free -= count
        self.note(count)
        _log.info("taken %s", count)
        return self.ids[:count]

    def __repr__(self) -> str:
        return f"{1 + 1}"
'''


def _made() -> set[tuple[str, str, str]]:
    return {(one.operator, one.before, one.after) for one in mutants("pool.py", SOURCE)}


@pytest.mark.parametrize(
    "change",
    [
        ("comparison", "count > self.free", "count >= self.free"),
        ("and/or", "count > self.free and (not self.closed)", "count > self.free or not self.closed"),
        ("condition", "not self.closed", "self.closed"),
        (
            "condition",
            "count > self.free and (not self.closed)",
            "not (count > self.free and (not self.closed))",
        ),
        ("arithmetic", "self.free -= count", "self.free += count"),
        ("removed", "self.free -= count", "pass"),
        ("removed", "self.note(count)", "pass"),
        ("returned", "return self.ids[:count]", "return None"),
        ("constant", "3", "4"),
        ("constant", "1", "2"),
    ],
    ids=lambda one: f"{one[1]} -> {one[2]}",
)
def test_each_operator_changes_its_places(change: tuple[str, str, str]) -> None:
    assert change in _made()


def test_words_for_people_and_imports_are_left_alone() -> None:
    told = [one for one in mutants("pool.py", SOURCE) if "_log" in one.before or "+" in one.before]
    assert told == []


def test_a_mutant_differs_in_one_place_and_can_be_compiled() -> None:
    found = mutants("pool.py", SOURCE)
    assert len({one.text for one in found}) == len(found)
    for one in found:
        changed = ast.unparse(ast.parse(one.text))
        assert changed != ast.unparse(ast.parse(SOURCE))
        different = [a for a, b in zip(one.text.split("\n"), SOURCE.split("\n"), strict=True) if a != b]
        assert len(different) == 1, one


def test_a_mutant_knows_the_lines_that_run_it() -> None:
    found = {one.before: one.lines for one in mutants("pool.py", SOURCE)}
    line = SOURCE.split("\n").index("        self.note(count)") + 1
    assert found["self.note(count)"] == range(line, line + 1)
    assert not found["3"], "it runs as the module is imported"
    long = "def f(a):\n    if (\n        a\n        < 3\n    ):\n        return a\n    return 4\n"
    [one] = [one for one in mutants("f.py", long) if one.operator == "comparison"]
    assert one.lines == range(2, 5)
    assert one.text.count("\n") == long.count("\n"), "what stands below stays in its line"


def test_tests_are_chosen_by_the_lines_they_run_the_fastest_first() -> None:
    lines = {"slow": {"a.py": [3, 4], "b.py": [1]}, "fast": {"a.py": [3]}, "other": {"a.py": [9]}}
    coverage = Coverage(lines, {"slow": 5.0, "fast": 1.0, "other": 0.5})
    assert coverage.tests("a.py", [3], None, 60) == (["fast", "slow"], 6.0)
    assert coverage.tests("a.py", [4, 5], 3, 60) == (["slow", "fast"], 6.0), "and what runs the function"
    assert coverage.tests("a.py", [3], None, 2) == (["fast"], 1.0)
    assert coverage.tests("a.py", [3], None, 0)[0] == ["fast"], "one at least"
    assert coverage.tests("a.py", [], None, 60)[0] == ["other", "fast", "slow"]
    assert coverage.tests("c.py", [3], 3, 60) == ([], 0.0)


LOADED = """
import functools


def made(size):
    def inner(a):
        return a < size
    return inner


class Pool:
    @functools.cache
    def take(self, a):
        return a < 3

    @property
    def full(self):
        return len([a for a in range(4) if a < 3])


small = made(3)
"""


def test_a_change_reaches_every_function_of_a_loaded_file(tmp_path: Path) -> None:
    path = tmp_path / "loaded.py"
    path.write_text(LOADED)
    spec = importlib.util.spec_from_file_location("loaded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def said() -> tuple[object, ...]:
        return module.small(3), module.Pool().full, module.Pool().take(3)

    assert said() == (False, 3, False)
    changed = set()
    for one in mutants("loaded.py", LOADED):
        if one.operator == "comparison":
            change(path, one.text)
            changed.add(said())
    assert changed == {(True, 3, False), (False, 4, False), (False, 3, True)}
    change(path, LOADED)
    assert said() == (False, 3, False)


def test_what_takes_too_long_without_a_change_as_well_is_neither_killed_nor_survived() -> None:
    rows = [
        {"area": "pools", "name": "a.py: constant: 1 -> 2", "line": 4, "outcome": outcome}
        for outcome in ("killed", "survived", NOT_JUDGED, NOT_JUDGED)
    ]
    written = page(rows, 10, 7)
    assert "| pools | 2 | 1 | 0 | 1 | 50.0 % |" in written
    assert (
        "10 mutants, of which 2 were judged: a sample (seed 7); of 2 more the tests took too long" in written
    )


def test_the_page_names_what_survived() -> None:
    rows = [
        {"area": "pools", "name": "a.py: constant: 1 -> 2", "line": 4, "outcome": outcome}
        for outcome in ("killed", "hung", "survived", "killed")
    ]
    written = page(rows, 10, 7)
    assert "| pools | 4 | 3 | 0 | 1 | 75.0 % |" in written
    assert "line 4, survived: `a.py: constant: 1 -> 2`" in written
    assert "10 mutants, of which 4 were judged: a sample (seed 7)" in written
