"""Whatever a backend does to the process around it, there is a named failure, a report, and a bad verdict."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from devicekit_conformance import processes
from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Status, Verdict
from devicekit_conformance.publish import write_report
from devicekit_conformance.report import make_report
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target
from tests.conformance.hostile import Case, every_case, sample
from tests.seeds import drawn_seed

_SEED = drawn_seed("HOSTILE_SEED")
CASES = every_case() if os.environ.get("HOSTILE") == "all" else sample(_SEED, 8)
JUDGED = (
    "DK-LOAD-001",
    "DK-LOAD-004",
    "DK-LOAD-009",
    "DK-CORE-001",
    "DK-CORE-005",
    "DK-CORE-006",
    "DK-DRIVER-001",
)
AT_EXIT = ("DK-LOAD-001", "DK-PROC-008")


@pytest.fixture(scope="module")
def shared() -> Iterator[Nursery]:
    with Nursery() as one:
        yield one


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_backend_is_a_named_failure(case: Case, tmp_path: Path, shared: Nursery) -> None:
    print(f"HOSTILE_SEED={_SEED}")
    path = tmp_path / "mine.py"
    path.write_text(case.source, encoding="utf-8")
    others = {one.pid for one in processes.descendants(os.getpid())}  # of tests before this one
    # One that a case ends is not for the others.
    with Nursery() if "fork server" in case.deed else contextlib.nullcontext(shared) as nursery:
        session = Session(
            Target(f"{path}:Mine"), nursery, profiles=("core", "memory", "processes"), patience=0.05
        )
        try:
            for id in AT_EXIT if case.phase == "at exit" else JUDGED:
                session.judge(id)
            report = make_report(session)
        finally:
            session.close()
        write_report(report, tmp_path / "out")
        left = [
            one for one in processes.descendants(os.getpid()) if "mine" in one.name or one.session == one.pid
        ]
        expected = {nursery.pid, shared.pid} | others
        strangers = [one for one in left if one.parent == os.getpid() and one.pid not in expected]
    assert session.verdict is Verdict.NON_CONFORMANT
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    failed = [row for row in written["results"] if row["status"] in ("fail", "error")]
    assert failed, written["results"]
    assert all(row["message"] for row in failed)
    assert not [row for row in failed if row["status"] == Status.ERROR.value], failed
    assert not strangers
    assert (tmp_path / "out" / "report.json").stat().st_size < 1_000_000
