"""Mutants: what is changed, which tests are chosen, and that one that nobody notices is told."""

from __future__ import annotations

import ast
import gc
import importlib.util
import json
import subprocess
import sys
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


def test_a_mutant_knows_where_a_value_of_the_module_is_used() -> None:
    [one] = [
        one
        for one in mutants("m.py", "MOST = 3\nOTHER = 'a'\ndef f(a):\n    return a < MOST\n")
        if one.line == 1
    ]
    assert (one.before, one.uses) == ("3", (4,))


def test_tests_are_tried_by_how_near_they_are_to_the_change_and_the_fastest_first() -> None:
    lines = {
        "t.py::slow": {"a.py": [3, 4], "b.py": [1]},
        "t.py::fast": {"a.py": [3]},
        "u.py::other": {"a.py": [9]},
    }
    seconds = {
        "t.py::slow": 5.0,
        "t.py::fast": 1.0,
        "u.py::other": 0.5,
        "u.py::besides": 0.1,
        "v.py::no": 0.1,
    }
    coverage = Coverage(lines, seconds)
    coverage.add(["u.py::newer", "v.py::newer"])
    slow, fast, other = lines
    beside = ["u.py::besides", "u.py::newer"]
    assert coverage.tests("a.py", [3], None) == [[fast, slow], [], [other], beside]
    assert coverage.tests("a.py", [4, 5], 3) == [[slow], [fast], [other], beside], (
        "and what runs the function"
    )
    assert coverage.tests("a.py", [], None) == [[], [], [other, fast, slow], beside]
    assert coverage.tests("c.py", [3], 3) == [[], [], [], []]


def test_of_a_file_in_which_no_line_runs_the_tests_are_those_that_name_it(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("from a.records import One\n")
    (tmp_path / "u.py").write_text("from a.others import Two\n")
    (tmp_path / "v.py").write_text('PACKAGES = ("a.inner", "b")\n')
    seconds = {"t.py::slow": 2.0, "u.py::no": 0.1, "t.py::fast": 1.0, "v.py::all": 3.0}
    coverage = Coverage({}, seconds)
    assert coverage.naming("a.records", tmp_path) == ["t.py::fast", "t.py::slow"]
    assert coverage.naming("a.inner.records", tmp_path) == ["v.py::all"], "of every module of a package"


def test_as_many_tests_run_as_there_is_time_for_and_one_at_least() -> None:
    coverage = Coverage({}, {"slow": 5.0, "fast": 1.0, "other": 0.5})
    assert coverage.within(["fast", "slow", "other"], 60) == (["fast", "slow", "other"], 6.5)
    assert coverage.within(["fast", "slow", "other"], 2) == (["fast", "other"], 1.5)
    assert coverage.within(["fast", "slow"], 0) == (["fast"], 1.0)


SHARING = """
import pytest
import made

@pytest.fixture(scope="module")
def shared():
    return made.value()

def test_first(shared): assert shared == 3
def test_second(shared): assert shared
def test_alone(): pass
"""


def test_what_a_shared_fixture_runs_counts_for_each_test_that_uses_it(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("def value():\n    return 3\n")
    (tmp_path / "test_sharing.py").write_text(SHARING)
    measure = (
        "import json, sys, pytest\n"
        "from tools.mutants.covering import Covering\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "covering = Covering(sys.argv[1])\n"
        "pytest.main(['-q', '-p', 'no:cacheprovider', '--rootdir', sys.argv[1], sys.argv[1]], [covering])\n"
        "names = ('first', 'second', 'alone')\n"
        "print(json.dumps(covering.found({f'test_sharing.py::test_{one}': 1.0 for one in names})))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", measure, str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True,
    )  # fmt: skip
    lines = json.loads(ran.stdout.splitlines()[-1])["lines"]
    using = {test.partition("::")[2] for test, files in lines.items() if 2 in files.get("made.py", [])}
    assert using == {"test_first", "test_second"}, ran.stdout


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
    gc.freeze()  # as sessions do once their tests are collected
    for one in mutants("loaded.py", LOADED):
        if one.operator == "comparison":
            change(path, one.text)
            changed.add(said())
    assert changed == {(True, 3, False), (False, 4, False), (False, 3, True)}
    change(path, LOADED)
    assert said() == (False, 3, False)
    gc.freeze()


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
