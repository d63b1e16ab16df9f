"""What ports bring along from one-class accelerator layers is named in words that their author knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Result, Status, Verdict
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target

ADDRESS = "tests.conformance.accelerator_style:AcceleratorStyle"
PROBE = "devicekit_conformance.simulated:SimProbe"


@pytest.fixture(scope="module")
def judged(nursery: Nursery) -> Iterator[Session]:
    session = Session(Target(ADDRESS, PROBE), nursery, profiles=["memory", "streams", "hardware"])
    yield session
    session.close()


SAID: Mapping[str, tuple[str, ...]] = {
    # its peak is the driver's memory
    "DK-STATE-010": ("allocated reached", "its peak is", "holds from the driver"),
    "DK-STATE-011": ("right after the reset", "its peak", "holds from the driver"),
    # free is what is left of total, cache or not
    "DK-DRIVER-004": ("free leaves out what the cache keeps",),
    # its index is ignored
    "DK-STATE-014": ("device 1", "the index is ignored"),
    "DK-ORDER-003": ("still running after synchronize(1)", "device 0 current"),
    # what is missing is None or 0
    "DK-STATE-003": ("have numbers instead of None",),
    "DK-CORE-007": ("compute_units is 0: unknown is None",),
    "DK-STREAM-001": ("current_stream returned None", "left out instead"),
}


@pytest.mark.parametrize("id", SAID)
def test_each_fault_is_named(judged: Session, id: str) -> None:
    found: Result = judged.judge(id)
    assert found.status is Status.FAIL
    for words in SAID[id]:
        assert words in found.message


def test_what_it_does_right_is_not_blamed(judged: Session) -> None:
    for id in ("DK-STATE-005", "DK-CACHE-002", "DK-DRIVER-003"):
        assert judged.judge(id).status is Status.PASS
    assert judged.verdict is Verdict.NON_CONFORMANT
