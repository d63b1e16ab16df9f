"""The suite's own test: a fixed sample of faulty backends is caught, and honest machines are not."""

from __future__ import annotations

import pytest

from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Status
from devicekit_conformance.rulebook import rulebook
from devicekit_conformance.selftest.__main__ import ELSEWHERE, run_one
from devicekit_conformance.selftest.catalogue import catalogue
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target

SAMPLE = (
    "FreesLiveMemory",
    "Kibibytes",
    "ReadingWaits",
    "DoesNotWait",
    "IgnoresEvents",
    "SpoilsTheKVPool",
    "MissingIsZero",
    "BelievesAnyType",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_faulty_backend_is_caught_by_the_requirement_that_names_its_fault(
    nursery: Nursery, name: str
) -> None:
    faulty = next(one for one in catalogue() if one.name == name)
    outcome = run_one(faulty, nursery)
    assert outcome.status == Status.FAIL.value, outcome


def test_every_requirement_has_a_faulty_backend_and_the_other_way_round() -> None:
    caught = {one.caught_by for one in catalogue()}
    written = {id for id, rule in rulebook().items() if not rule.every}  # the others are for derived faults
    assert written - caught == ELSEWHERE
    assert caught <= rulebook().keys()
    assert all(one.fault.endswith(".") for one in catalogue())


def test_an_honest_machine_passes_clean(nursery: Nursery) -> None:
    target = Target("devicekit_conformance.simulated:uncached", "devicekit_conformance.simulated:SimProbe")
    session = Session(target, nursery, profiles=["memory", "streams", "host", "hardware"])
    try:
        session.run()
        bad = [one for one in session.results() if one.status not in (Status.PASS, Status.NOT_APPLICABLE)]
        assert not bad
    finally:
        session.close()
