"""The suite's own test: a fixed sample of faulty backends is caught, and honest machines are not."""

from __future__ import annotations

import pytest

from devicekit.contract import HOOKS
from devicekit_conformance.effects import EFFECTS, effect_of
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


# Of these the effect is seen in another process only, and there is a requirement for it.
BY_REQUIREMENT = {
    "import_ipc": "DK-PROC-011",
    "export_event": "DK-PROC-015",
    "import_event": "DK-PROC-015",
}


def test_every_hook_of_the_contract_is_judged_by_what_it_does() -> None:
    effect_of("is_available")  # enters them all
    assert BY_REQUIREMENT.keys() == HOOKS.keys() - EFFECTS.keys()
    assert set(BY_REQUIREMENT.values()) <= rulebook().keys()


def test_a_backend_that_shares_events_is_not_refused_for_it(nursery: Nursery) -> None:
    target = Target(
        "devicekit_conformance.selftest.control_faults:SharesEvents",
        "devicekit_conformance.simulated:SimProbe",
    )
    session = Session(target, nursery, profiles=["core", "processes"], only=["DK-PROC-008", "DK-PROC-015"])
    try:
        session.run()
        judged = {one.id: one.status for one in session.results()}
        assert judged["DK-PROC-015"] is Status.PASS
    finally:
        session.close()


@pytest.mark.thorough  # in make test, a freedom that is drawn is
def test_an_honest_machine_passes_clean(nursery: Nursery) -> None:
    target = Target("devicekit_conformance.simulated:uncached", "devicekit_conformance.simulated:SimProbe")
    session = Session(target, nursery, profiles=["memory", "streams", "host", "hardware"])
    try:
        session.run()
        bad = [one for one in session.results() if one.status not in (Status.PASS, Status.NOT_APPLICABLE)]
        assert not bad
    finally:
        session.close()
