"""What strangers install is what there is, and what they are told is judged as they would."""

from __future__ import annotations

from typing import Any, cast

import pytest

from devicekit.documents import read_toml
from tools.environments import ROOT
from tools.stranger.extras import BASE, COMMANDS, ENDLESS, EXTRAS, PROGRAMS
from tools.stranger.page import Visit, page, read, write
from tools.stranger.visit import Ended


def test_every_extra_is_installed_alone():
    there = cast("Any", read_toml(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    assert set(EXTRAS) >= {"", *there}
    assert {part for one in EXTRAS for part in one.split(",") if part} == set(there)


def test_everything_that_must_work_is_run():
    run = {*COMMANDS, *PROGRAMS}
    assert run >= {*BASE, *(one for works in EXTRAS.values() for one in works)}
    assert run == {*BASE, *(one for works in EXTRAS.values() for one in works)}, (
        "with which extra does it work?"
    )
    assert ENDLESS.keys() <= COMMANDS.keys()


@pytest.mark.parametrize(
    ("name", "status", "text", "must_work", "expected"),
    [
        ("serve", 0, "", False, None),
        ("serve", 1, "Try: pip install 'devicekit[serve]'", False, None),
        ("serve", 1, "Try: pip install 'devicekit[serve]'", True, "serve should work here"),
        ("serve", 1, "uvicorn is not installed", False, "names no extra"),
        ("serve", 1, "Traceback\nValueError: devicekit[serve]", False, "traceback"),
        ("stream", 1, "Traceback\nInvalidOperation: devicekit[stream]", False, None),
        ("stream", 1, "Traceback devicekit[x]\nModuleNotFoundError: zmq", False, "names no extra"),
    ],
)
def test_a_stranger_is_stuck_where_nothing_works_and_no_extra_is_named(
    name, status, text, must_work, expected
):
    problem = Ended(name, status, text).problem(must_work)
    assert (problem is None) == (expected is None)
    assert expected is None or expected in str(problem)


def test_the_last_visit_of_each_extra_is_kept_and_shown(tmp_path):
    file = tmp_path / "stranger.json"
    write(file, [Visit("base", ["list"]), Visit("cli", wrong=["top fails"])])
    write(file, [*read(file), Visit("cli", ["list", "top"], ["serve"], seconds=7.0)])
    base, cli = read(file)
    assert (base.extra, cli.wrong, cli.seconds) == ("base", [], 7.0)
    assert "| cli | sound | top | 1 | 7 s |" in (tmp_path / "stranger.md").read_text()
    assert "## Wrong" in page([Visit("cli", wrong=["top fails"])])
    file.write_text("{}")
    with pytest.raises(ValueError, match="no record of visits"):
        read(file)
