"""No honest backend is refused, however unusual: each freedom of the contract alone, and some drawn in pairs."""

from __future__ import annotations

import random

import pytest

from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Level, Status
from devicekit_conformance.selftest.freedoms import FREEDOMS, honest_names
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target
from tests.conformance.quick import quick
from tests.seeds import drawn_seed

BELOW_THE_ENGINE = ("core", "memory", "streams", "host", "processes")
PROFILES = (*BELOW_THE_ENGINE, "engine")
_SEED = drawn_seed("FREEDOMS_SEED")
_DRAW = random.Random(_SEED)
_SAMPLED = _DRAW.choice([name for name in FREEDOMS if name != "slow_hooks"])  # which takes minutes
_OTHERS = _DRAW.sample([name for name in honest_names() if name not in FREEDOMS], 12)

# What refused a freedom once, before anybody had judged it.
_ONCE_REFUSED = {
    "absent_devices_are_unknown": ["DK-CORE-009"],
    "collectives_by_device_type": ["DK-PROC-004"],
    "counts_late": ["DK-CACHE-007", "DK-DRIVER-004", "DK-EACH-201"],
    "declared_types": ["DK-EACH-301"],
    "eight_devices": ["DK-EACH-208"],
    "exactly_asked_for": ["DK-EACH-201"],
    "gone_in_bad_forks": ["DK-EACH-105"],
    "graphs_of_one_capture": ["DK-EACH-301"],
    "half_taken_back": ["DK-CAP-001", "DK-CAP-008"],
    "of_a_newer_contract": ["DK-LOAD-002"],
    "one_import_a_handle": ["DK-PROC-011"],
    "pages_of_64_mib": ["DK-EACH-209"],
    "time_in_steps": ["DK-EACH-301"],
    "tiny": ["DK-EACH-201", "DK-EACH-208"],
    "watched_from_the_start": ["DK-EACH-301", "DK-EACH-401"],
    "whole_pages_are_locked": ["DK-EACH-402", "DK-EACH-406"],
}


@pytest.mark.parametrize(
    ("name", "only"),
    [
        *(pytest.param(one, ids, id=f"{one}-once") for one, ids in _ONCE_REFUSED.items()),
        pytest.param(_SAMPLED, quick(BELOW_THE_ENGINE), id=f"{_SAMPLED}-quick"),
        *(pytest.param(one, None, marks=pytest.mark.thorough, id=one) for one in (*FREEDOMS, *_OTHERS)),
    ],
)
def test_an_honest_backend_is_not_refused(name: str, only: list[str] | None, nursery: Nursery) -> None:
    print(f"FREEDOMS_SEED={_SEED}")
    target = Target(
        f"devicekit_conformance.selftest.freedoms:{name}", "devicekit_conformance.simulated:SimProbe"
    )
    session = Session(target, nursery, only=only, profiles=PROFILES)
    try:
        session.run()
        stopped = (Status.FAIL, Status.ERROR, Status.BLOCKED)
        bad = [one for one in session.results() if one.status in stopped and one.level is not Level.SHOULD]
        assert not bad, "\n".join(f"{one.id} {one.status.value}: {one.message}" for one in bad)
    finally:
        session.close()
