"""Peers are timed beside us or not at all: no figure of theirs stands anywhere."""

from __future__ import annotations

import io

import pytest

from bench import beside
from bench.beside import Ours
from bench.harness import Row
from bench.peers.peer import Peer
from bench.report import as_page
from bench.serving_steps import scheduler_of, served


def test_each_case_is_timed_in_turns_with_every_peer_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def taking(name: str, seconds: float) -> beside.Case:
        def once() -> float:
            calls.append(name)
            return seconds * len(calls)  # a machine that becomes slower

        return lambda size: once

    case = Ours(
        "step", taking("ours", 1e-6), "step", (64,), {("one", 64): 2.5, ("two", 64): 9.0}, "says much"
    )
    there = [
        Peer("one", "1.0", "its model", {"step": taking("one", 3e-6)}),
        Peer("two", "2.0", "nothing", {"step": taking("two", 3e-6)}),
        Peer("three", "3.0", "nothing", {"other": taking("three", 1.0)}),
    ]
    monkeypatch.setattr(beside, "CASES", (case,))
    monkeypatch.setattr(beside, "peers", lambda: (there, {"four": "it is not here"}))
    told = io.StringIO()
    rows = beside.run(told)
    assert calls[:6] == ["ours", "one", "two"] * 2
    assert [(row.case, row.peer, row.met) for row in rows] == [
        ("step, 64", "one", True),
        ("step, 64", "two", False),
    ]
    assert "four: not run (it is not here)" in told.getvalue()
    page = as_page({"peers": rows})
    assert "one 1.0, made up: its model" in page
    assert "- missed: step, 64" in page


def test_without_peers_there_are_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "peers", lambda: ([], {"one": "it is not here"}))
    assert beside.run(io.StringIO()) == []


def test_the_steps_of_a_server_do_what_they_say() -> None:
    mixed = scheduler_of(64, "mix")
    step = mixed.step()
    assert step.ran == 64
    assert step.columns is not None
    assert 0 < len(step.columns) < 64
    assert served(64)() > 0


def test_what_is_in_a_figure_stands_under_the_table() -> None:
    page = as_page(
        {"peers": [Row("one", 1.0, "us", says="this and that"), Row("two", 1.0, "us", says="this and that")]}
    )
    assert page.count("- this and that") == 1
