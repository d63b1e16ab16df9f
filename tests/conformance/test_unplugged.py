"""A device without a plugin keeps the contract, with what was seen of it as its claims."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Status
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target
from tests.conformance.quick import quick

PROFILES = ("core", "memory", "streams", "host", "processes")

# A backend that is judged may start no process when it is imported, so what was found out is written down first.
MODULE = """
from devicekit.device import generic
from devicekit.testing import GIB, SimConfig, enable
from devicekit.torchlike.finding import Findings
from devicekit.torchlike.generic import GenericBackend

enable(SimConfig(capacity=16 * GIB, fill_uninitialized=False))
"""
FINDING = MODULE + 'print(GenericBackend("sim").findings)'
JUDGED = MODULE + 'Sim = generic.backend_class("sim", {findings})'


@pytest.mark.parametrize("only", [quick(PROFILES), pytest.param(None, marks=pytest.mark.thorough)])
def test_a_device_without_a_plugin_is_faultless(
    only: list[str] | None, nursery: Nursery, tmp_path: Path
) -> None:
    finding = [sys.executable, "-c", FINDING]
    found = subprocess.run(finding, check=True, timeout=120, capture_output=True, text=True).stdout
    path = tmp_path / "unplugged.py"
    path.write_text(JUDGED.format(findings=found), encoding="utf-8")
    target = Target(f"{path}:Sim", "devicekit_conformance.simulated:SimProbe")
    session = Session(target, nursery, only=only, profiles=PROFILES)
    try:
        session.run()
        results = session.results()
        assert [one for one in results if one.status in (Status.FAIL, Status.BLOCKED, Status.ERROR)] == []
        assert sum(one.status is Status.PASS for one in results) >= (25 if only else 100)
    finally:
        session.close()


STREAMLESS = """
import torch
from devicekit_conformance.simulated import SimProbe


class Partial:
    def __getattr__(self, name):
        if name in ("current_stream", "get_rng_state"):
            raise AttributeError(name)
        return getattr(torch.sim, name)


class Probe(SimProbe):
    runtime = Partial()
"""


def test_a_module_without_streams_is_not_held_against_its_backend(nursery: Nursery, tmp_path: Path) -> None:
    path = tmp_path / "streamless.py"
    path.write_text(STREAMLESS, encoding="utf-8")
    target = Target("devicekit_conformance.simulated:discrete", f"{path}:Probe")
    session = Session(target, nursery, only=["DK-EACH-501"], profiles=["processes"])
    try:
        session.run()
        assert {one.id: one.message for one in session.results() if one.status is Status.FAIL} == {}
        assert [one.status for one in session.results() if one.id == "DK-EACH-501"] == [Status.PASS]
    finally:
        session.close()
