"""No honest backend is refused, however unusual: each freedom of the contract alone, and some drawn in pairs."""

from __future__ import annotations

import random

import pytest

from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Level, Status
from devicekit_conformance.selftest.freedoms import FREEDOMS, honest_names
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target
from tests.seeds import drawn_seed

PROFILES = ("core", "memory", "streams", "host", "processes", "engine")
_SEED = drawn_seed("FREEDOMS_SEED")
_DRAW = random.Random(_SEED)
_SAMPLED = [_DRAW.choice([name for name in FREEDOMS if name != "slow_hooks"])]  # which takes minutes
_OTHERS = [name for name in honest_names() if name not in FREEDOMS]
_NAMES = [
    *_SAMPLED,
    *(pytest.param(one, marks=pytest.mark.thorough) for one in FREEDOMS if one not in _SAMPLED),
    *(pytest.param(one, marks=pytest.mark.thorough) for one in _DRAW.sample(_OTHERS, 12)),
]


@pytest.mark.parametrize("name", _NAMES)
def test_an_honest_backend_is_not_refused(name: str, nursery: Nursery) -> None:
    print(f"FREEDOMS_SEED={_SEED}")
    target = Target(
        f"devicekit_conformance.selftest.freedoms:{name}", "devicekit_conformance.simulated:SimProbe"
    )
    profiles = ("core", "memory") if name in _SAMPLED else PROFILES
    session = Session(target, nursery, profiles=profiles)
    try:
        session.run()
        stopped = (Status.FAIL, Status.ERROR, Status.BLOCKED)
        bad = [one for one in session.results() if one.status in stopped and one.level is not Level.SHOULD]
        assert not bad, "\n".join(f"{one.id} {one.status.value}: {one.message}" for one in bad)
    finally:
        session.close()
