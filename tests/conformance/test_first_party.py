"""First-party plugins keep the contract over their vendors' doubles; what a double cannot show is not claimed."""

from __future__ import annotations

import random

import pytest

from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Status, Verdict
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target
from tests.conformance.quick import quick
from tests.doubles.vendors import FLAVOURS
from tests.seeds import drawn_seed

PROFILES = ("core", "memory", "streams", "host", "processes", "hardware")
# A double counts memory and keeps time; it computes nothing.
CONTENTS = {"DK-CACHE-002", "DK-CACHE-009", "DK-OOM-005", "DK-STREAM-011", "DK-STREAM-012", "DK-STREAM-013"}
SHARING = {"DK-PROC-009", "DK-PROC-011"}
CAPTURED = {"DK-CONTROL-004", "DK-CONTROL-009"}
VACUOUS = {"DK-CONTROL-005", "DK-PROC-008", "DK-PROC-012", "DK-PROC-013", "DK-PROC-015"}
# What is asked of each hook beside work that runs, where the vendor lets one see that it does.
BESIDE = {
    "cuda": {"DK-EACH-104"},
    "rocm": {"DK-EACH-104"},
    "xpu": {"DK-EACH-104", "DK-EACH-404", "DK-EACH-504"},
    "npu": {"DK-EACH-104", "DK-EACH-204", "DK-EACH-404"},
    "musa": {"DK-EACH-104", "DK-EACH-204", "DK-EACH-404"},
}
# npu and musa are device types only where their packages have named them.
UNDECIDED = {
    "cuda": CONTENTS | SHARING,
    "rocm": CONTENTS | SHARING,
    "xpu": CONTENTS,
    "npu": CONTENTS | SHARING | {"DK-CORE-004"},
    "musa": CONTENTS | SHARING | {"DK-CORE-004"},
}
DECIDED = {
    "DK-LOAD-001",
    "DK-LOAD-002",
    "DK-LOAD-008",
    "DK-CAP-002",
    "DK-CORE-009",
    "DK-CACHE-003",
    "DK-DRIVER-004",
    "DK-STATE-005",
    "DK-STATE-011",
    "DK-STATE-014",
    "DK-ORDER-002",
    "DK-ORDER-003",
    "DK-STREAM-007",
    "DK-OOM-001",
    "DK-RNG-002",
    "DK-HYG-009",
    "DK-PROC-001",
    "DK-PROC-006",
}


_SEED = drawn_seed("FIRST_PARTY_SEED")
_SAMPLED = random.Random(_SEED).choice(list(FLAVOURS))


@pytest.mark.parametrize(
    ("vendor", "only"),
    [
        pytest.param(_SAMPLED, quick(PROFILES), id=f"{_SAMPLED}-quick"),
        *(pytest.param(one, None, marks=pytest.mark.thorough, id=one) for one in FLAVOURS),
    ],
)
def test_a_plugin_is_faultless_over_its_vendors_double(
    vendor: str, only: list[str] | None, nursery: Nursery
) -> None:
    print(f"FIRST_PARTY_SEED={_SEED}")
    target = Target(f"tests.doubles.judged:{vendor}", "tests.doubles.judged:DoubleProbe")
    session = Session(target, nursery, only=only, profiles=PROFILES)
    session.exclude(VACUOUS, "a double is no device that processes end with, share or connect")
    try:
        session.run()
        statuses = {one.id: one.status for one in session.results()}
        bad = [one for one in session.results() if one.status in (Status.FAIL, Status.BLOCKED, Status.ERROR)]
        assert not bad
        undecided = {id for id, status in statuses.items() if status is Status.NOT_RUN}
        left_out = set(statuses) - set(only or statuses)
        assert undecided == UNDECIDED[vendor] | VACUOUS | CAPTURED | BESIDE[vendor] | left_out
        assert {id for id in DECIDED - left_out if statuses[id] is not Status.PASS} == set()
        assert session.verdict is Verdict.INCOMPLETE  # a double never earns a verdict
    finally:
        session.close()
