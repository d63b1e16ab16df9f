"""The table of versions shows what ran, what did not pass, and what was not run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tools.environments import ROOT
from tools.versions import COLUMNS, SHORT, Counts, Run, page, read, write
from tools.versions.columns import Column

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_good"/>
<testcase classname="tests.test_a" name="test_bad"><failure message="no">no</failure></testcase>
<testcase classname="tests.test_a" name="test_left_out"><skipped message="it is old"/></testcase>
<testcase classname="tests.test_b" name="test_broken"><error/></testcase>
</testsuite></testsuites>"""
ONE = Column("one", "3.12", "because")
RAN = Run(
    "one", "short", "2026-11-30 12:00 UTC", "abc", "3.12.1", {"torch": "2.11.0"}, Counts(7, 0, 0, 1), 90.0
)


def row(text: str, name: str) -> str:
    [found] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return found


def test_counts_are_those_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    counts = Counts.of(tmp_path / "junit.xml")
    assert (counts.passed, counts.failed, counts.errors, counts.skipped) == (1, 1, 1, 1)
    assert counts.failures == ("tests.test_a::test_bad", "tests.test_b::test_broken")
    assert counts.left_out == {"it is old": {"tests.test_a": 1}}


def test_a_column_that_never_ran_says_so_and_why() -> None:
    assert "| not run |" in row(page([ONE], []), "one")
    assert "| not run: no such Python |" in row(
        page([ONE], [Run("one", "long", "", "", blocked="no such Python")]), "one"
    )


def test_what_did_not_pass_is_counted_and_named() -> None:
    bad = replace(RAN, counts=Counts(5, 1, 1, 0, ("tests.test_a::test_bad", "tests.test_b::test_broken")))
    assert bad.red
    assert not RAN.red
    assert replace(RAN, counts=Counts()).red  # nothing ran at all
    text = page([ONE], [bad])
    assert "| 5 | **2** | 0 |" in row(text, "one")
    assert "`tests.test_b::test_broken`" in text
    assert "Not passed" not in page([ONE], [RAN])
    assert "- one, short: in two parts" in page([ONE], [replace(RAN, note="in two parts")])


def test_what_was_left_out_is_counted_by_reason_and_file() -> None:
    some = replace(RAN, counts=Counts(5, skipped=3, left_out={"it is old": {"tests.b": 1, "tests.a": 2}}))
    assert "- one, short, 3 because it is old: tests.a 2, tests.b 1" in page([ONE], [some])
    assert "Left out" not in page([ONE], [RAN])


def test_a_later_run_replaces_an_earlier_one_and_a_blocked_one_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "versions.json"
    later = replace(RAN, counts=Counts(9))
    write(file, [RAN, later, replace(RAN, blocked="the index is gone"), replace(RAN, form="long")])
    assert [(one.form, one.counts.passed) for one in read(file)] == [("short", 9), ("long", 7)]
    write(file, [*read(file), replace(RAN, form="long", counts=Counts(3))])
    assert [one.counts.passed for one in read(file)] == [9, 3]


def test_another_file_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_text('{"schema": "another"}')
    with pytest.raises(ValueError, match="devicekit-versions/1"):
        read(tmp_path / "versions.json")
    assert read(tmp_path / "none.json") == []


def test_the_page_is_the_one_that_the_record_makes() -> None:
    results = ROOT / "docs" / "results"
    assert (results / "versions.md").read_text(encoding="utf-8") == page(
        COLUMNS, read(results / "versions.json")
    )


def test_columns_hold_what_is_claimed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest, *others = COLUMNS
    assert oldest.lowest
    assert project["requires-python"] == f">={oldest.python}"
    assert not any(one.lowest for one in others)
    assert len({one.name for one in COLUMNS}) == len(COLUMNS)
    assert all((ROOT / path).exists() for path in SHORT)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    [development] = [one for one in COLUMNS if one.name == "development"]
    assert all(line in pins for line in development.constraints.splitlines())


def test_workflows_run_columns_that_exist() -> None:
    names = {one.name for one in COLUMNS}
    jobs = [
        yaml.safe_load((ROOT / ".github" / "workflows" / file).read_text(encoding="utf-8"))["jobs"][
            "versions"
        ]
        for file in ("test.yml", "nightly.yml")
    ]
    short, long = (job["strategy"]["matrix"] for job in jobs)
    assert [one["column"] for one in short["include"]] == ["oldest", "newest"]
    # Development's column is what everything else runs on.
    assert set(long["column"]) | {"development"} == names
