"""Waivers: owned by the vendor, with a reason, a link and an end, and never a way to hide."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit_conformance.outcomes import Level, Result, Status
from devicekit_conformance.target import UsageError
from devicekit_conformance.waivers import Waivers

Command = Callable[..., "subprocess.CompletedProcess[str]"]


TODAY = datetime.date(2026, 6, 1)


def entry(**changes: str) -> str:
    fields = {
        "requirement": '"DK-STATE-012"',
        "reason": '"statistics are answered over RPC"',
        "link": '"https://tracker.example/1"',
        "expires": "2026-12-31",
    }
    fields.update(changes)
    return "[[waiver]]\n" + "".join(f"{key} = {value}\n" for key, value in fields.items() if value)


def read(tmp_path: Path, text: str) -> Waivers:
    path = tmp_path / "waivers.toml"
    path.write_text(text, encoding="utf-8")
    return Waivers.read(path, TODAY)


def result(status: Status, id: str = "DK-STATE-012") -> Result:
    return Result(id, Level.MUST, "memory", status, "2.1 ms")


def test_a_failure_with_a_waiver_is_waived_and_keeps_its_message(tmp_path: Path) -> None:
    applied = read(tmp_path, entry()).apply(result(Status.FAIL))
    assert applied.status is Status.WAIVED
    assert applied.message == "2.1 ms"
    assert applied.waiver is not None
    assert applied.waiver["expires"] == "2026-12-31"


@pytest.mark.parametrize("status", [Status.PASS, Status.NOT_APPLICABLE])
def test_a_waiver_that_is_no_longer_needed_is_a_failure(tmp_path: Path, status: Status) -> None:
    assert read(tmp_path, entry()).apply(result(status)).status is Status.STALE_WAIVER


def test_a_waiver_for_something_flaky_may_be_unneeded(tmp_path: Path) -> None:
    assert read(tmp_path, entry(strict="false")).apply(result(Status.PASS)).status is Status.PASS


@pytest.mark.parametrize("status", [Status.NOT_RUN, Status.BLOCKED])
def test_a_waiver_does_not_excuse_what_was_not_judged(tmp_path: Path, status: Status) -> None:
    assert read(tmp_path, entry()).apply(result(status)).status is status


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (entry(expires="2026-05-31"), "expired on 2026-05-31"),
        (entry(expires="2036-01-01"), "more than 400 days away"),
        (entry(expires=""), "expires is required"),
        (entry(reason='"  "'), "reason is required"),
        (entry(link='"see chat"'), "link must be a web address"),
        (entry(requirement='"DK-STATE-999"'), "there is no requirement 'DK-STATE-999'"),
        (entry(requirement='"DK-CACHE-002"'), "DK-CACHE-002 cannot be waived"),
        (entry(until="2026-12-31"), "there is no key 'until'"),
        (entry() + entry(), "DK-STATE-012 is waived twice"),
        ("[waivers]\n", "there is no table 'waivers'"),
        ("[[waiver]\n", "cannot be read"),
    ],
)
def test_a_wrong_waiver_file_is_refused_with_its_faults(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)


def test_every_fault_of_a_waiver_file_is_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, entry(reason="", link="") + entry(expires=""))
    assert str(caught.value).count("\n  - ") == 3


def test_a_waived_failure_makes_a_run_conformant_with_waivers(
    command: Command, tmp_path: Path, backend: Callable[[str], str]
) -> None:
    ends = datetime.date.today() + datetime.timedelta(days=30)
    waivers = tmp_path / "waivers.toml"
    waivers.write_text(entry(requirement='"DK-DRIVER-001"', expires=str(ends)), encoding="utf-8")
    judged = ["DK-DRIVER-001", "DK-ORDER-001", "DK-LOAD-001"]
    only = [part for id in judged for part in ("--only", id)]
    run = ("conformance", "run", "--backend", backend("swapped"), "--waivers", waivers, *only)
    done = command(*run, "--allow-incomplete", "-v", folder=tmp_path)
    assert done.returncode == 0
    assert "DK-DRIVER-001  waived" in done.stdout
