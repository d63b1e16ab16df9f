"""A device for which torch has no type says what it is and has: tensors of the host are not held against it."""

from __future__ import annotations

from typing import ClassVar

from devicekit.contract import DeviceProperties, ErrorKind, Manifest, MemoryInfo, hookimpl
from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Status
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target

_TOTAL = 32 << 30  # bytes


class Card:
    """One card, known to its management library alone."""

    manifest: ClassVar[Manifest] = Manifest.parse(
        {
            "backend": {
                "name": "card",
                "device_type": "cpu",
                "indexed": False,
                "contract": ">=1.0,<2",
                "noop": ["synchronize"],
                "capabilities": ["driver_memory"],
            }
        }
    )

    @hookimpl
    def is_available(self) -> bool:
        return True

    @hookimpl
    def device_count(self) -> int:
        return 1

    @hookimpl
    def synchronize(self, index: int) -> None:
        """Nothing was submitted to it."""

    @hookimpl
    def device_properties(self, index: int) -> DeviceProperties:
        return DeviceProperties(name="Card", total_memory=_TOTAL)

    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        return MemoryInfo(_TOTAL // 8 * 5, _TOTAL, "management")

    @hookimpl
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        return None  # whatever the host ran out of


_UNDECIDED = ("DK-DRIVER-003", "DK-OOM-001", "DK-OOM-004")
_DECIDED = ("DK-DRIVER-002", "DK-EACH-101", "DK-EACH-201")


def test_what_lies_in_the_hosts_memory_says_nothing_of_the_devices(nursery: Nursery) -> None:
    session = Session(Target(f"{__name__}:{Card.__name__}"), nursery, only=[*_UNDECIDED, *_DECIDED])
    try:
        session.run()
        judged = {one.id: one for one in session.results()}
        assert {judged[id].status for id in _DECIDED} == {Status.PASS}, [
            judged[id].message for id in _DECIDED
        ]
        for id in _UNDECIDED:
            assert judged[id].status is Status.NOT_RUN
            assert "it needs a probe" in judged[id].message
    finally:
        session.close()
