"""Judging: a hang or crash is a result, one fault is one failure, and the suite outlives every backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devicekit_conformance.calibration import Deadline
from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Level, Result, Status, Tier, Verdict, tier_of, verdict_of
from devicekit_conformance.rulebook import DEFAULT_PROFILES, PROFILES
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target


@contextmanager
def judging(address: str, nursery: Nursery, patience: float = 1.0) -> Iterator[Session]:
    session = Session(Target(address), nursery, patience=patience)
    try:
        yield session
    finally:
        session.close()


def test_a_hook_that_hangs_is_killed_and_named(backend: Callable[[str], str], nursery: Nursery) -> None:
    with judging(backend("hanging"), nursery, patience=0.1) as session:
        result = session.judge("DK-ORDER-001")
        assert result.status is Status.FAIL
        assert "did not finish within 3 s" in result.message
        assert session.judge("DK-ORDER-002").status is Status.BLOCKED


def test_a_hook_that_crashes_is_a_failure_with_its_signal(
    backend: Callable[[str], str], nursery: Nursery
) -> None:
    with judging(backend("crashing"), nursery) as session:
        result = session.judge("DK-ORDER-001")
        assert result.status is Status.FAIL
        assert "killed by SIGABRT" in result.message
        assert session.judge("DK-CORE-001").status is Status.PASS


def test_a_worker_that_dies_is_replaced(backend: Callable[[str], str], nursery: Nursery) -> None:
    body = """
    @hookimpl
    def collective_backend(self) -> str:
        os._exit(3)
"""
    with judging(backend(body), nursery) as session:
        result = session.judge("DK-PROC-004")
        assert result.status is Status.FAIL
        assert "ended with exit status 3" in result.message
        assert session.judge("DK-CORE-001").status is Status.PASS


def test_what_depends_on_a_failure_is_blocked_and_not_failed(
    backend: Callable[[str], str], nursery: Nursery
) -> None:
    with judging(backend("swapped"), nursery) as session:
        assert session.judge("DK-DRIVER-003").status is Status.BLOCKED
        assert session.judge("DK-DRIVER-001").status is Status.FAIL
        assert session.judge("DK-CACHE-002").status is Status.PASS


def test_a_backend_that_cannot_be_imported_is_one_failure(
    tmp_path: object, backend: Callable[[str], str], nursery: Nursery
) -> None:
    with judging(backend("    raise OSError('libacme.so: cannot open')\n"), nursery) as session:
        result = session.judge("DK-LOAD-001")
        assert result.status is Status.FAIL
        assert "libacme.so" in result.message
        assert session.judge("DK-CORE-001").status is Status.BLOCKED


def result(status: Status, level: Level = Level.MUST) -> Result:
    return Result("DK-X-001", level, "core", status)


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([result(Status.PASS), result(Status.NOT_APPLICABLE)], Verdict.CONFORMANT),
        ([result(Status.PASS), result(Status.FAIL, Level.SHOULD)], Verdict.CONFORMANT),
        ([result(Status.PASS), result(Status.WAIVED)], Verdict.CONFORMANT_WITH_WAIVERS),
        ([result(Status.PASS), result(Status.NOT_RUN)], Verdict.INCOMPLETE),
        ([result(Status.NOT_APPLICABLE)], Verdict.INCOMPLETE),
        ([], Verdict.INCOMPLETE),
        ([result(Status.PASS), result(Status.FAIL), result(Status.NOT_RUN)], Verdict.NON_CONFORMANT),
        ([result(Status.PASS), result(Status.BLOCKED)], Verdict.NON_CONFORMANT),
        ([result(Status.PASS), result(Status.ERROR)], Verdict.NON_CONFORMANT),
        ([result(Status.PASS), result(Status.STALE_WAIVER, Level.SHOULD)], Verdict.NON_CONFORMANT),
    ],
)
def test_the_verdict_follows_from_what_must_be(results: list[Result], verdict: Verdict) -> None:
    assert verdict_of(results) is verdict


def test_a_tier_is_earned_by_what_was_shown() -> None:
    default, everything = DEFAULT_PROFILES, tuple(PROFILES)
    assert tier_of(Verdict.CONFORMANT, everything, default, False) is Tier.CERTIFIED
    assert tier_of(Verdict.CONFORMANT, default, default, False) is Tier.VERIFIED
    assert tier_of(Verdict.CONFORMANT, default, default, True) is Tier.EXPERIMENTAL
    assert tier_of(Verdict.CONFORMANT, ("core",), default, False) is Tier.EXPERIMENTAL
    assert tier_of(Verdict.CONFORMANT_WITH_WAIVERS, everything, default, False) is Tier.EXPERIMENTAL
    assert tier_of(Verdict.INCOMPLETE, everything, default, False) is Tier.NONE


@pytest.mark.parametrize(
    ("requires", "status"),
    [("devicekit>=0.1,<0.2", Status.PASS), ("devicekit>=0.1", Status.FAIL), ("pluggy", Status.FAIL)],
)
def test_an_installed_plugin_should_bound_the_devicekit_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery, requires: str, status: Status
) -> None:
    package, information = tmp_path / "devicekit_acme", tmp_path / "devicekit_acme-1.0.dist-info"
    package.mkdir()
    information.mkdir()
    (package / "__init__.py").write_text("from devicekit_cpu import Backend as Backend\n")
    manifest = (
        '[backend]\nname = "acme"\ndevice_type = "cpu"\ncontract = ">=1.0,<2"\nindexed = false\nhost = true\n'
    )
    (package / "backend.toml").write_text(manifest + 'capabilities = ["driver_memory"]\n')
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: devicekit-acme\nVersion: 1.0\nRequires-Dist: {requires}\n"
    )
    (information / "entry_points.txt").write_text("[devicekit.backends]\nacme = devicekit_acme:Backend\n")
    monkeypatch.syspath_prepend(tmp_path)
    with judging("acme", nursery) as session:
        session.target.check()
        assert session.judge("DK-LOAD-010").status is status


def test_what_keeps_happening_gives_no_time_without_end() -> None:
    deadline = Deadline(0.02)
    while deadline.left():
        deadline.restart()
    assert deadline.at <= time.monotonic()
